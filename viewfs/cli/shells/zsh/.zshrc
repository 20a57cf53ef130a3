# zsh in a view: your own start files, then the session's name before the prompt.
ZDOTDIR=$VIEWFS_ZDOTDIR
unset VIEWFS_ZDOTDIR
[[ -r $ZDOTDIR/.zshrc ]] && source $ZDOTDIR/.zshrc
PROMPT="($VIEWFS_SESSION) $PROMPT"
