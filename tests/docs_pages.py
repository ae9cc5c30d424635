"""The code blocks of the README and of docs/, and how each is run: in the order of its page, in one folder per page.

A block's language says what is done with it: `bash` and the lines of `console` that begin with $ are commands, `python`
is executed, `yaml`, `toml` and `json` are parsed; `text` is output or a drawing and holds no command. A comment before
a block, `<!-- not run: REASON -->`, takes it out; `<!-- output of the block above -->` before a text says that this is
what the Python above it prints, to the letter.

Commands run as they stand, but for their size: a pretraining gets the keys of TINY that it does not say itself, TINY's
batch and three steps in place of larger ones, and torchrun two processes where the page says more.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.conftest import ROOT, TINY, TINY_CMA, run_python

LANGUAGES = ("bash", "console", "python", "yaml", "toml", "json", "text", "js", "html")
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
OUTPUT = "<!-- output of the block above -->"
NOT_RUN = re.compile(r"^\s*<!-- not run: (?P<reason>.+) -->$")
COMMANDS = ("avssl", "torchrun", "accelerate", "pip", "python", "sbatch", "srun")
TINY_IMAGES = [
    "cpu=true", "mixed_precision=fp32", "steps=2", "log_every_steps=1", "data.global_batch_size=4",
    "data.num_workers=0", "views.image.size_px=24", "encoders.image={name: resnet10, width: 2}",
]  # fmt: skip
AUDIO_VISUAL = ("avid", "avid_cma")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. reason: why it is not run; None if it is."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    is_output: bool = False  # of the block above

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Its lines of commands, each whole, without the prompt and without comments of their own line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def pages() -> list[Path]:
    """The README and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> list[Block]:
    """The blocks of a page in their order. ValueError for a block that does not end."""
    found, reason, is_output, opened = [], None, False, None
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    body: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if opened:
            if fence and not fence["info"]:
                indent = len(opened[1])
                text = "\n".join(part[indent:] for part in body) + "\n"
                found.append(Block(name, opened[0], opened[2], text, reason, is_output))
                opened, reason, is_output = None, None, False
            else:
                body.append(line)
        elif fence:
            opened, body = (number, fence["indent"], fence["info"].split(" ")[0]), []
        elif mark := NOT_RUN.match(line):
            reason = mark["reason"]
        elif line.strip():
            reason, is_output = None, line.strip() == OUTPUT
    if opened:
        raise ValueError(f"{name}:{opened[0]}: the block does not end")
    return found


def known_as(page: str, name: str) -> str:
    """The command of the block that is not run with its page, and whose reason ends with "known to tests as NAME"."""
    found = [one for one in blocks(ROOT / page) if (one.reason or "").endswith(f"known to tests as {name}")]
    (command,) = found[0].commands()
    return command


class Folder:
    """The folder of one page, in which its blocks run one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: dict[str, object] = {"__name__": "docs"}
        self.printed = ""
        (path / "bin").mkdir()
        (path / "bin" / "avssl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m avssl "$@"\n')
        (path / "bin" / "avssl").chmod(0o755)

    def run(self, block: Block) -> None:
        """Run one block; AssertionError with the block's place for a command that fails."""
        try:
            self._run(block)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block}: {type(error).__name__}: {error}\n\n{block.text}") from error

    def _run(self, block: Block) -> None:
        if block.is_output:
            assert block.text == self.printed, f"the block above prints:\n{self.printed}"
        elif block.language == "python":
            self._python(block)
        elif block.language in ("bash", "console"):
            if re.search(r"<<|\$\(|^(for|while|if) ", block.text, re.MULTILINE):
                self._bash(block.text)
            else:
                for line in block.commands():
                    for command in line.split(" && "):
                        self._command(command)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)

    def _python(self, block: Block) -> None:
        file = re.match(r"# (\w+\.py)\n", block.text)
        if file:  # the page shows a file
            (self.path / file[1]).write_text(block.text)
            return
        printed = io.StringIO()
        with contextlib.chdir(self.path), contextlib.redirect_stdout(printed):
            exec(compile(block.text, str(block), "exec"), self.names)
        self.printed = printed.getvalue()

    def _command(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        if words[0] == "avssl":
            self._project("avssl", *smaller(words[1:]))
        elif words[:3] == ["accelerate", "launch", "-m"]:
            self._project(words[3], *smaller(["pretrain", *words[4:]])[1:])
        elif words[0] == "torchrun":
            self._torchrun(words[1:])
        elif words[0] == "python":
            run_python(*words[1:], folder=self.path)
        elif words[0] == "pip":
            check_extras(line)
        else:
            self._bash(line)

    def _project(self, module: str, *arguments: str) -> None:
        run_python("-m", module, *arguments, folder=self.path)

    def _torchrun(self, words: list[str]) -> None:
        at = words.index("-m")
        module, *arguments = words[at + 1 :]
        program = module.rpartition(".")[2]
        launcher = ["--standalone", "--nproc_per_node", "2"]
        arguments = smaller([program, *arguments])[1:]
        run_python("-m", "torch.distributed.run", *launcher, "-m", module, *arguments, folder=self.path)

    def _bash(self, text: str) -> None:
        environment = os.environ | {
            "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        process = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=self.path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert process.returncode == 0, f"{process.stdout}\n{process.stderr}"


def smaller(words: list[str]) -> list[str]:
    """The words of an `avssl` command; a pretraining also gets the keys of a tiny run that it does not say itself."""
    if words[0] != "pretrain":
        return words
    recipe = next((word for word in words[1:] if "=" not in word and not word.startswith("-")), "")
    if recipe.startswith("demo_"):  # small as it stands
        return words
    words = [word for word in words if not re.fullmatch(r"(data\.(global_batch_size|order_lanes)|epochs)=\d+", word)]
    keys = [*TINY, "steps=3"] if recipe in AUDIO_VISUAL else TINY_IMAGES
    keys = ["steps=3"] if recipe.endswith("_small") else keys  # its networks and views are small
    keys = [*keys, *TINY_CMA] if recipe == "avid_cma" else keys
    said = {word.partition("=")[0] for word in words}
    return [*words, *(key for key in keys if key.partition("=")[0] not in said)]


def check_extras(line: str) -> None:
    """AssertionError unless the extras of avssl that a line of pip installs are those of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"avssl\[([\w,]+)\]", line):
        unknown = set(names.split(",")) - extras.keys()
        assert not unknown, f"{line}: no extra is called {unknown}"
