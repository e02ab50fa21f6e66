"""Everything that touches Tornado: connections, requests, bodies, limits, handlers."""
