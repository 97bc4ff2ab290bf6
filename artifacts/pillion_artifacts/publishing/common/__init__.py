"""What every importer of policies uses: drafts, observations, parity with the source, an inert pickle reader."""
