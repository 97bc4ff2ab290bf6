"""What monitoring reads: `/metrics`, `/health`, `/livez`, `/readyz` and `/info`.

Reads the metrics page and never asks the serving process: a scrape costs the data path nothing.
"""
