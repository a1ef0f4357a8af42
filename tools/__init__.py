"""What developers run: nothing here is packaged."""
