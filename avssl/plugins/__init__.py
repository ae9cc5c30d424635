"""Parts of the user's own: files and installed packages that register losses, encoders, transforms and tasks.

files.py runs a file that the user names, registry.py is the table in which a part is found by its name, those of
installed packages too, required.py compares what a run was made with to what is there. docs/plugins.md explains their
use. Nothing that opens data or a run runs a file: only the user's own command, YAML or call does.
"""
