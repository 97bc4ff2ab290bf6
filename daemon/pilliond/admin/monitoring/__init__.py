"""`/metrics`, `/health` and `/info`.

They read the metrics page and never ask the serving process: a scrape costs the data path nothing.
"""
