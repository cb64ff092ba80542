"""Prompts as token ids, and token ids as text. No tensors.

The processor of transformers drops its chat template when it is loaded (fault F), so the prompt is
put together here: role, media, the user's words, end, role. The media's and the roles' ids are
placed by this code alone; the same characters inside the user's words stay characters.

The tokenizer is read from ``tokenizer.json`` as it stands: transformers' tokenizer classes rebuild
some of its parts by rules of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from phi4d.errors import ConfigError


class Tokens:
    """The model's tokenizer with its prompt format.

    Attributes:
        media: ids that stand for media and must never come from words or be generated.
        stop: ids that end an answer.
    """

    def __init__(
        self,
        path: Path,
        *,
        media: Collection[int],
        stop: Collection[int],
        user_prompt: str,
        assistant_prompt: str,
        prompt_suffix: str,
    ) -> None:
        self.media = frozenset(media)
        self.stop = frozenset(stop)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no other class
            raise ConfigError(f"{path}: not a tokenizer ({error}). Download it again") from error
        self._user = self._encode(user_prompt)
        # what ends the user's turn ends the model's; a checkpoint's own list may lack it
        suffix = self._encode(prompt_suffix)
        if len(suffix) == 1:
            self.stop |= set(suffix)
        self._end = self._encode(prompt_suffix + assistant_prompt)
        self._guard()

    def _guard(self) -> None:
        """Make the user's words be split into characters where they spell a special token.

        The tokenizer does so for the tokens that are marked special; those that matter here are
        marked, in case a checkpoint forgot.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        matter = self.media | self.stop | set(self._user) | set(self._end)
        unmarked = [token for i, token in added.items() if i in matter and not token.special]
        self._tokenizer.add_special_tokens(
            [AddedToken(token.content, normalized=False, special=True) for token in unmarked]
        )
        self._tokenizer.encode_special_tokens = True

    def prompt(self, words: str, media: int, count: int) -> list[int]:
        """The ids of a whole prompt.

        Args:
            words: the user's, as they are.
            media: the id that stands for the picture or the clip.
            count: how many places it takes.
        """
        return [*self._user, *[media] * count, *self._encode(words), *self._end]

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text, without special tokens and outer white space."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
