"""Publishing: makes an artifact of what a policy was trained with. Needs `pillion[publish]`; the daemon never comes here."""
