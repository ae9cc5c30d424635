"""The command `avssl`: the programs of the package by name. `python -m avssl` is the same.

    avssl quickstart
    avssl prep index VIDEOS --out corpus.jsonl
    avssl prep write corpus.jsonl --out shards/
    avssl pretrain avid run=runs/avid data.shards=shards/
    accelerate launch -m avssl.recipes.pretrain avid run=runs/avid data.shards=shards/     # several GPUs

Each program has a --help of its own. With --json each writes a JSON object a line (docs/json.md).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from avssl.errors import one_line_errors
from avssl.files.plain_text import JSON_OPTION, begin_command, brief, emit, interrupted, say, say_lines
from avssl.recipe_files import config_files, description, recipes_folder
from avssl.version import __version__

# {name: (module with `command(arguments) -> exit status`, what it does)}
PROGRAMS = {
    "quickstart": ("avssl.recipes.quickstart", "the whole way on made-up videos, in a minute and a half"),
    "prep": ("data_prep.__main__", "media to shards: index, split, facts, write, verify, coverage, stats, show, ..."),
    "pretrain": ("avssl.recipes.pretrain", "pretrain encoders by a recipe"),
    "embed": ("avssl.recipes.embed", "embeddings of files, folders or shards"),
    "evaluate": ("avssl.recipes.evaluate", "evaluate a run by a task, or compare two results"),
    "search": ("avssl.recipes.search", "the nearest embeddings of a file, within or across modalities"),
    "explore": ("avssl.recipes.explore", "drop a video, a sound or text in a browser: the nearest rows, playing"),
    "report": ("avssl.recipes.report", "one HTML page of a run"),
    "demo": ("avssl.recipes.demo", "all of it on a made-up corpus, in ./demo"),
    "export": (
        "avssl.exchange.targets.command",
        "data for other programs: Hugging Face, FiftyOne, LightlyStudio, CSV, NumPy",
    ),
    "exchange": ("avssl.exchange.__main__", "import, export and push models"),
}
USAGE_STATUS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the first argument names with the others; its exit status, 2 for wrong usage."""
    given = sys.argv[1:] if argv is None else list(argv)
    name = next((word for word in given if word != JSON_OPTION), "")
    if name in PROGRAMS:
        arguments = list(given)
        arguments.remove(name)
        sys.argv[0] = f"avssl {name}"  # what --help calls the program
        try:
            status: int = import_module(PROGRAMS[name][0]).command(arguments)
        except KeyboardInterrupt:  # also while libraries are imported
            return interrupted()
        return status
    name, *arguments = begin_command(name or "avssl", given) or [""]
    with one_line_errors():
        if name == "recipes" and not arguments:
            print_recipes()
        elif name == "copy" and len(arguments) in (1, 2) and not arguments[0].startswith("-"):
            copy_recipe(arguments[0], Path(arguments[1] if len(arguments) > 1 else "."))
        elif name == "doctor" and not arguments:
            from avssl.doctor import examine  # here: its libraries are for it alone

            return examine()
        elif name == "--version":
            say(f"avssl {__version__}")
        else:
            asked = bool({"-h", "--help"}.intersection([name, *arguments]))
            if name and not asked:
                message = f"avssl {brief(' '.join([name, *arguments]))} is not a command"
                say(f"error: {message}", sys.stderr)
                emit("error", message=message, status=USAGE_STATUS)
            say_lines(usage(), sys.stdout if asked else sys.stderr)
            return 0 if asked else USAGE_STATUS
    return 0


def usage() -> str:
    """The text of --help."""
    own = {
        "recipes": "list the recipes with a line each",
        "doctor": "check versions, codecs, cores, memory, disk, GPUs and processes",
        "copy": "RECIPE [FOLDER]: copy a recipe and its YAML to change them",
    }
    rows = {name: text for name, (_, text) in PROGRAMS.items()} | own
    lines = [f"  {name:<10} {text}" for name, text in rows.items()]
    return "\n".join(["usage: avssl COMMAND [...]", "", *lines, "", str(__doc__)])


def print_recipes() -> None:
    """A line for each YAML: its name and what it is."""
    files = config_files()
    width = max(map(len, files))
    for name, path in files.items():
        say(f"{name:<{width}}  {description(path)}")
        emit("recipe", name=name, description=description(path), file=path)
    emit("result", num_recipes=len(files))


def copy_recipe(name: str, folder: Path) -> None:
    """Copy the YAML of that name and the recipe that reads it into a folder.

    Raises ValueError for an unknown name, FileExistsError if a file of that name is there.
    """
    files = config_files()
    if name not in files:
        raise ValueError(f"no recipe is called {brief(name)}; `avssl recipes` lists them")
    script = "evaluate.py" if name.startswith("evaluate") else "pretrain.py"
    sources = [recipes_folder() / script, files[name]]
    for source in sources:
        if (folder / source.name).exists():
            raise FileExistsError(f"{folder / source.name} is there already; name another folder, or remove the file")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        shutil.copyfile(source, folder / source.name)
    run = " RUN" if script == "evaluate.py" else ""
    say(f"copied; to run it: python {folder / script}{run} {folder / files[name].name} key=value ...")
    emit("result", files=[folder / source.name for source in sources])
