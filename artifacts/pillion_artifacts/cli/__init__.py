"""`pillion artifact`: the store's commands. Nothing else imports this room."""
