"""Where inputs come from and outputs go: ``s3://`` through boto3, ``file://`` without a copy."""

from fastmaker.jobs.storage.objects import (
    check_writable,
    copy,
    fetch,
    link_or_download,
    list_objects,
    names_below,
    open_object,
    put,
    put_stream,
    remove,
    sizes,
)
from fastmaker.jobs.storage.s3 import ONE_PUT
from fastmaker.jobs.storage.uris import (
    MissingError,
    StorageError,
    absolute,
    bucket_and_key,
    check,
    check_scheme,
    folder_of,
    join,
    local_path,
    uri_of,
)

__all__ = [
    "ONE_PUT",
    "MissingError",
    "StorageError",
    "absolute",
    "bucket_and_key",
    "check",
    "check_scheme",
    "check_writable",
    "copy",
    "fetch",
    "folder_of",
    "join",
    "link_or_download",
    "list_objects",
    "local_path",
    "names_below",
    "open_object",
    "put",
    "put_stream",
    "remove",
    "sizes",
    "uri_of",
]
