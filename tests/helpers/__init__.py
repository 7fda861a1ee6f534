"""Shared by several test files: cases, references, and small builders."""
