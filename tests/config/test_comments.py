"""The comments of YAML files, by the key that they explain."""

from __future__ import annotations

from genlab.config.comments import comments

TEXT = """\
# A header.
defaults:
  - a # no key

_target_: a.B # no key either
one: 1 # about one
quoted: "a # b" # about quoted
flow: {inner: [1, 2], other: 3} # about flow
listed: [1, 2]   # about listed
empty: # about empty
block: # about block
  deep: null # about deep
  bare: 1
# About above,
# in two lines.
above: 2
items:
  - a # of an item
"""


def test_a_comment_belongs_to_the_key_on_its_line_or_below() -> None:
    assert comments(TEXT) == {
        **{name: f"about {name}" for name in ("one", "quoted", "flow", "listed", "empty", "block")},
        "block.deep": "about deep",
        "above": "About above, in two lines.",
    }


def test_a_file_without_keys_has_no_comments() -> None:
    assert comments("") == comments("# only a header\n") == comments("- a # b\n") == {}
