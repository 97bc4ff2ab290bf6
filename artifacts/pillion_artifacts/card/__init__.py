"""Model cards, and the checks that the files of a version agree with their card."""
