"""Compile what has a compiled part (`services/detector/_quiet.pyx`), where there is a C compiler.

`make` runs it when its source has changed, hatchling for every wheel, so the image has it, too. Without a compiler or
Python's headers all works as well, only slower: a line says so. The image brings a compiler of its own, pinned as all
packages are (`ziglang`).

    python deploy/compile.py        ends 1 where it cannot be done
"""

import contextlib
import hashlib
import importlib.util
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from setuptools import Distribution, Extension
from setuptools.errors import CompileError, LinkError, PlatformError

NAME = "services.detector._quiet"


def compiled(root: Path) -> Path:
    """The module beside its source, made of it.

    Raises:
        CompileError, LinkError, PlatformError: there is no compiler, or it refuses.
    """
    if importlib.util.find_spec("ziglang") is not None:
        # Without a processor named it is compiled for this machine's, and ends on an older one.
        os.environ["CC"] = f"{shlex.quote(sys.executable)} -m ziglang cc -mcpu=baseline"
        os.environ["LDSHARED"] = f"{os.environ['CC']} -shared"
    source = root.joinpath(*NAME.split(".")).with_suffix(".pyx")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="arbiter-") as folder, contextlib.chdir(root):
        extension = Extension(
            NAME,
            [str(source.relative_to(root))],
            define_macros=[("QUIET_SOURCE", f'"{digest}"')],
            # A product and a sum in one step round otherwise than Python does.
            extra_compile_args=["-ffp-contract=off"],
        )
        made = cythonize([extension], build_dir=folder, quiet=True)
        command = Distribution({"name": "arbiter", "ext_modules": made}).get_command_obj("build_ext")
        command.inplace, command.build_temp, command.build_lib = True, folder, folder
        command.ensure_finalized()
        command.run()
        return Path(command.get_ext_fullpath(NAME))


REFUSED = (CompileError, LinkError, PlatformError)
"""No compiler, no headers. A mistake in the source is another error, and ends whatever is being built."""


class CompileHook(BuildHookInterface[Any]):
    """Puts the compiled module into the wheel, which is then one for this Python and machine only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # `make` does it, and again whenever its source has changed
        try:
            module = compiled(Path(self.root))
        except REFUSED as error:
            self.app.display_warning(f"not compiled, the detector will be slower: {error}")
            return
        build_data["artifacts"].append(str(module.relative_to(self.root)))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


if __name__ == "__main__":
    try:
        compiled(Path(__file__).parents[1])
    except REFUSED as error:
        sys.exit(
            f"the detector's tick path could not be compiled; in Python it has half the rate or less. Why: {error}"
        )
