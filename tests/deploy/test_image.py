"""What goes into the image, and how it is pinned. That it builds and runs is seen where an engine is: docs/compose.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def pins(name: str) -> dict[str, set[str]]:
    """Package with version to its hashes."""
    text = (ROOT / "requirements" / name).read_text()
    found = re.findall(r"^(\S+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", text, re.MULTILINE)
    return {package: set(re.findall(r"[0-9a-f]{64}", hashes)) for package, hashes in found}


def test_the_compiler_is_pinned():
    (package,) = pins("compiler.txt")
    assert package.startswith("ziglang==")
    # Else it compiles for the processor of whoever builds the image, and the detector ends on an older one.
    assert "-m ziglang cc -mcpu=baseline" in (ROOT / "deploy" / "compile.py").read_text()


def test_what_builds_the_wheel_is_pinned_as_for_development():
    build, development = pins("build.txt"), pins("dev.txt")
    assert any(package.startswith("hatchling==") for package in build)
    for package, hashes in build.items():
        assert development[package] == hashes


def test_everything_is_installed_by_its_hash_or_is_our_own():
    installs = re.findall(r"pip --python \S+ install (.*?)(?:\n[A-Z]|&&|$)", DOCKERFILE, re.DOTALL)
    assert len(installs) == 3
    for words in installs:
        assert "--require-hashes --only-binary :all:" in words or ("--no-deps" in words and "/tmp/wheel/" in words)
    assert not re.search(r"apt-get|curl|wget|ADD ", DOCKERFILE)


def test_the_last_stage_runs_as_nobody_special_and_has_only_what_was_copied():
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert not re.search(r"^RUN", last, re.MULTILINE)
    assert re.findall(r"^USER (.*)", last, re.MULTILINE) == ["10001:10001"]
    assert 'ENTRYPOINT ["arb"]' in last
    assert re.search(r'HEALTHCHECK .*CMD \["python", "-m", "services\.cli\.health", "--ready"\]', last, re.DOTALL)


def test_only_what_is_copied_is_sent_to_the_engine():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for words in re.findall(r"^COPY (?!--from)(.*)", DOCKERFILE, re.MULTILINE)
        for source in words.split()[:-1]
    }
    assert copied == allowed
