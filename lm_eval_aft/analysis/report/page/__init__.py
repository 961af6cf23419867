"""The HTML page of ``aft report --html``: one file without network access."""
