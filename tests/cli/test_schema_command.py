"""``prunekit schema``: it prints the files in docs/."""

from pathlib import Path

from command_line import done, typed

DOCS = Path(__file__).parents[2] / "docs"


def test_the_command_prints_the_files_of_the_documentation():
    assert done("prunekit schema").out == (DOCS / "recipe.schema.json").read_text(encoding="utf-8")
    assert done("prunekit schema --markdown").out == (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert done("prunekit schema --json").json["properties"]["evidence"]


def test_a_page_is_no_json():
    result = typed("prunekit schema --markdown --json")
    assert (result.code, result.json["error"]["type"]) == (2, "InputError")
    assert "Got --markdown and --json; expected one of them." in result.err


def test_the_command_prints_the_schemas_and_the_page_of_files():
    path = DOCS / "formats" / "allocation.schema.json"
    assert done("prunekit schema --file allocation").out == path.read_text(encoding="utf-8")
    assert done("prunekit schema --file formats --markdown").out == (DOCS / "formats.md").read_text(encoding="utf-8")


def test_a_file_without_a_schema_is_refused():
    result = typed("prunekit schema --file alocation")
    assert (result.code, result.out) == (2, "")
    assert "did you mean allocation?" in result.err
    result = typed("prunekit schema --file allocation --markdown")
    assert (result.code, result.out) == (2, "")
    assert "there is one page for all files: --file formats." in result.err
