"""The pages of the dashboard: each turns a snapshot into what its template shows."""
