"""What prunekit writes and reads as JSON: a model for each file, of which the JSON Schemas and the reference page are made.

Runs and commands build these models and write them; reports and commands read files through them. Format names are in
:mod:`prunekit.results.formats`, older versions of files in :mod:`prunekit.results.versions`. Modules are imported by their full
names, since pydantic is only needed where a file is read or written.
"""
