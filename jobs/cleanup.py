"""List what the jobs made, and delete it: ``fastmaker cleanup --all --yes``.

On AWS (``--backend aws``) it knows what the jobs made by the tag that they gave it, and touches nothing else.
"""

import argparse
import sys

from botocore.exceptions import ClientError

from fastmaker.jobs import backends
from fastmaker.jobs.backends.resources import Resource
from fastmaker.jobs.cli import arguments, errors, tables


def get_parser() -> argparse.ArgumentParser:
    """Return this command's parser."""
    parser = argparse.ArgumentParser(
        prog="fastmaker cleanup",
        description="List endpoints, models, archives, jobs and, on AWS, images, scaling and data, and delete them.",
        epilog="example: fastmaker cleanup --endpoint pets; fastmaker cleanup --backend aws --all --yes",
    )
    arguments.add_backend(parser, instances=False)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--endpoint", help="delete this endpoint with its configuration and models")
    chosen.add_argument("--only", nargs="+", metavar="KIND/NAME", help="these alone, as the list and errors name them")
    chosen.add_argument("--all", action="store_true", help="everything; running jobs are stopped")
    parser.add_argument("--yes", action="store_true", help="with --all or --only: delete, where otherwise it is listed")
    return parser


def parse_args(argv=None) -> argparse.Namespace:
    """Parse the arguments."""
    return get_parser().parse_args(argv)


def main(args) -> int:
    """List what is there and, where --endpoint or --yes says so, delete it. Raises Failure for what cannot be."""
    backend = backends.connect(**arguments.backend_options(args))
    if args.endpoint:
        backend.delete_endpoint(args.endpoint)
        print(f"deleted endpoint {args.endpoint}, its configuration and its models")
        return 0
    found = backend.resources(args.only)
    if unknown := set(args.only or ()) - {resource.label for resource in found}:
        print(f"not there any more, or not made by fastmaker: {', '.join(sorted(unknown))}")
    place = f" in {backend.region}" if backend.region else ""
    if not found:
        print(f"nothing is left{place}")
        return 0
    columns = 5 if any(resource.costs for resource in found) else 4  # on this machine nothing costs
    header = ["kind", "name", "status", "created", "costs"]
    print(tables.table(header[:columns], [_row(resource)[:columns] for resource in found]))
    if args.yes and (args.all or args.only):
        _delete_all(found)
        print("\ndeleted")
    else:
        chosen = f"--only {' '.join(args.only)}" if args.only else "--all"
        print(f"\nto delete all of it{place}: fastmaker cleanup{backend.cli_flags} {chosen} --yes")
    return 0


def _delete_all(found: list[Resource]) -> None:
    """Delete the resources. Raises Failure for what cannot be, after all else was deleted."""
    failures = []
    for resource in found:
        try:
            resource.delete()
        except (errors.Failure, ClientError) as error:
            failures.append(f"{resource.label}: {error}")
    if failures:
        raise errors.Failure(f"not deleted, try again later: {'; '.join(failures)}")


def _row(resource: Resource) -> list[str]:
    created = resource.created.strftime("%Y-%m-%d %H:%M") if resource.created else "-"
    return [resource.kind, resource.name, resource.status, created, resource.costs or "-"]


if __name__ == "__main__":
    errors.run(sys.modules[__name__])
