# fish in a view: the session's name before your own prompt.
functions -c fish_prompt _viewfs_own_prompt
function fish_prompt
    echo -n "($VIEWFS_SESSION) "
    _viewfs_own_prompt
end
