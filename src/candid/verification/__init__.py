"""Verification of artifacts: every file of a folder is read and compared with its checksum."""

from candid.verification.files import FileCheck
from candid.verification.walk import verify

__all__ = ["FileCheck", "verify"]
