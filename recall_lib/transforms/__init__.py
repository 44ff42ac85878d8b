"""DataFrame -> DataFrame, pure: no session, path or torch inside."""
