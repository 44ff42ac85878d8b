"""The dated tables below paths.root: schemas, publishing, locks, audits, the catalog, and which tables belong together."""
