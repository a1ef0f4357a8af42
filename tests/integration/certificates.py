"""A certificate authority of one's own and what it signs, by `openssl`: as `docs/security.md` does it."""

import subprocess
from pathlib import Path


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def authority(folder: Path, name: str = "ca") -> Path:
    """The authority's certificate; its key lies beside it."""
    certificate = folder / f"{name}.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(folder / f"{name}.key")]
    _openssl("req", "-x509", *key, "-out", str(certificate), "-days", "30", "-subj", f"/CN={name}")
    return certificate


def signed(folder: Path, name: str, *, host: str, by: str = "ca", expired: bool = False) -> Path:
    """A key store as Kafka reads it (`ssl.keystore.type=PEM`: key, then certificate) for a host, `IP:...` or `DNS:...`."""
    request, certificate, key = (folder / f"{name}.{kind}" for kind in ("csr", "crt", "key"))
    extensions = folder / f"{name}.extensions"
    extensions.write_text(f"subjectAltName={host}\nextendedKeyUsage=serverAuth,clientAuth\n")
    fresh = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key)]
    _openssl("req", *fresh, "-out", str(request), "-subj", f"/CN={name}")
    signer = ["-CA", str(folder / f"{by}.pem"), "-CAkey", str(folder / f"{by}.key"), "-CAcreateserial"]
    days = "-1" if expired else "30"
    into = ["-in", str(request), "-out", str(certificate), "-extfile", str(extensions), "-days", days]
    _openssl("x509", "-req", *into, *signer)
    store = folder / f"{name}.store.pem"
    store.write_text(key.read_text() + certificate.read_text())
    return store
