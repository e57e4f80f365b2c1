"""What the server costs beside `generate`, and what it does under load."""
