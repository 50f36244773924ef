# What DVC needs of this folder as a git checkout, told before anything is installed: `sh checkout.sh`. One sentence with
# the commands that help, and exit status 1 where nothing would run; a note where only experiments would not.

refuse() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

note() {
    printf 'note: %s\n' "$*" >&2
}

# As DVC has it: what git guesses of the machine's name does not count
has_identity() {
    name=${GIT_COMMITTER_NAME:-$(git config user.name 2> /dev/null)}
    email=${GIT_COMMITTER_EMAIL:-$(git config user.email 2> /dev/null)}
    [ -n "$name" ] && [ -n "$email" ]
}

command -v git > /dev/null ||
    refuse "git is not installed, and DVC keeps its experiments in it: install it (apt install git, brew install git)"

identity="git config --global user.name 'Your Name' && git config --global user.email you@example.com"
commit="git add -A && git commit -qm 'The project as it came'"
has_identity || commit="$identity && $commit"

clone_again="clone the project again, and copy into the clone what is yours (params.yaml, data)"
problem=$(LC_ALL=C git rev-parse --git-dir 2>&1 > /dev/null)
case $problem in
    *"dubious ownership"*)
        refuse "this folder belongs to another user, which git and DVC refuse; if you trust what is in it, type:" \
            "$(printf '%s' "$problem" | grep -o 'git config --global --add safe.directory .*')"
        ;;
    *"not a git repository"*)
        [ ! -e .git ] || refuse "git cannot read this folder's repository: $problem; $clone_again"
        refuse "this folder is no git repository (it came as an archive?), and DVC needs one; type: git init -q && $commit"
        ;;
    ?*)
        refuse "git cannot read this folder's repository: $problem; $clone_again"
        ;;
esac

if git check-ignore -q dvc.yaml; then
    refuse "the git repository at $(git rev-parse --show-toplevel) ignores this folder, and DVC needs one that knows it;" \
        "type: git init -q && $commit"
fi
git rev-parse -q --verify HEAD > /dev/null ||
    refuse "this git repository has no commit yet, and DVC needs one; type: $commit"

has_identity ||
    note "git does not know who you are, without which \`dvc exp run\` fails; type: $identity"

for recipe in $(grep -l "$(printf '\r')" params/*); do
    note "$recipe has the line ends of Windows, which \`dvc exp run\` cannot read; type:" \
        "dvc exp run \$(tr -d '\\r' < $recipe)"
done
