"""What the commands return: types, and from them JSON Schemas and docs/json.md."""
