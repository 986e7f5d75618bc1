"""From runs to evidence: tables, figures, a page."""
