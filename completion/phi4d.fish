# fish completion of phi4d: phi4d itself knows the answers (phi4d/cli/completing.py)

function __phi4d_answers
    set -l line (commandline -cp | string collect)
    for answer in (env _PHI4D_COMPLETE="$line" phi4d 2>/dev/null)
        switch $answer
            case :files
                __fish_complete_path (commandline -ct)
            case :folders
                __fish_complete_directories (commandline -ct)
            case '*'
                echo $answer
        end
    end
end

complete --command phi4d --no-files --arguments '(__phi4d_answers)'
