"""`pillion bench`: its commands. Nothing else imports this room."""
