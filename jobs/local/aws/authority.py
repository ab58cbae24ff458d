"""A certificate authority of one start of the server, whose certificates hold for AWS's names alone.

Its key is in memory and nowhere else. It names the domains that it may sign for, so that no client takes another
certificate of it: https://datatracker.ietf.org/doc/html/rfc5280#section-4.2.1.10
"""

import functools
import os
import re
import ssl
import tempfile
from datetime import datetime, timedelta, timezone
from ipaddress import ip_network
from pathlib import Path

from botocore.httpsession import get_cert_path
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fastmaker import files
from fastmaker.local.aws.domains import domains
from fastmaker.local.aws.settings import BUNDLE, BUNDLE_VARIABLES

DAYS = 365  # that a certificate is good for, should the server run so long
MAX_HOSTS = 256  # whose certificates are kept
PARTIAL = "certificate-"
CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Authority:
    """Signs certificates of AWS's hosts. `folder` is one that no other user can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for left in folder.glob(f"{PARTIAL}*"):  # by a process that was killed
            left.unlink()
        self._key, self._key_of_hosts = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
        self._name = _name("fastmaker aws, certificates of this start")
        limits = x509.NameConstraints([x509.DNSName(domain) for domain in domains()], _addresses())
        builder = _builder(self._name, self._name, self._key, self._key, _usage(signs=True))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(limits, critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        self.context = functools.lru_cache(MAX_HOSTS)(self._context)

    def write_bundle(self) -> None:
        """Write the certificate, and those that clients trust without it, to the folder."""
        others = [os.environ.get(name) for name in BUNDLE_VARIABLES]
        known = [*others, get_cert_path(True), ssl.get_default_verify_paths().cafile]
        bundle = self._folder / BUNDLE
        found = [Path(file) for file in known if file and Path(file).is_file() and Path(file) != bundle]
        trusted = dict.fromkeys(one for file in found for one in CERTIFICATE.findall(file.read_bytes()))
        with files.atomic(bundle) as partial:
            partial.touch(0o600)
            partial.write_bytes(b"\n".join([self.certificate.strip(), *trusted, b""]))

    def _context(self, host: str) -> ssl.SSLContext:
        """Return what a host of AWS is to a client that trusts the bundle."""
        subject = _name("fastmaker aws")
        builder = _builder(subject, self._name, self._key_of_hosts, self._key, _usage(signs=False))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        server = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = builder.add_extension(server, critical=False).sign(self._key, hashes.SHA256())
        key = self._key_of_hosts.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=PARTIAL) as file:  # ssl reads files alone
            file.write(key + certificate.public_bytes(Encoding.PEM))
            file.flush()
            context.load_cert_chain(file.name)
        return context


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _addresses() -> list[x509.GeneralName]:
    """Return all addresses: a limit to names says nothing of them."""
    return [x509.IPAddress(ip_network("0.0.0.0/0")), x509.IPAddress(ip_network("::/0"))]


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePrivateKey,
    issuers_key: EllipticCurvePrivateKey,
    usage: x509.KeyUsage,
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=DAYS))
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuers = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key.public_key())
    builder = builder.add_extension(identifier, critical=False).add_extension(issuers, critical=False)
    return builder.add_extension(usage, critical=True)
