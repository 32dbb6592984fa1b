"""Of a maps text only the lines that are asked for are found, whatever lies around them."""

from hypothesis import given
from hypothesis import strategies as st
from unit.values import format_maps_line, mappings, page_spans

from memfs.linux.maps import Mapping, parse_maps
from memfs.linux.mapstext import lines_over
from memfs.linux.span import Span


def _apart(found: list[Mapping]) -> list[Mapping]:
    """As the kernel has them: in order, and none on top of another."""
    kept: list[Mapping] = []
    for mapping in sorted(found, key=lambda each: each.span):
        if not kept or mapping.span.start >= kept[-1].span.end:
            kept.append(mapping)
    return kept


@given(st.lists(mappings, max_size=12), page_spans())
def test_the_lines_are_those_whose_vmas_meet_what_is_asked_for(found: list[Mapping], span: Span) -> None:
    apart = _apart(found)
    text = b"".join(format_maps_line(mapping) for mapping in apart)
    edges = [at for mapping in apart for at in (mapping.span.start, mapping.span.end)]
    for wanted in (span, *(Span(at, at + 1) for at in edges), *(Span(at - 1, at) for at in edges)):
        meeting = tuple(mapping for mapping in apart if mapping.span.clip(wanted))
        assert parse_maps(lines_over(text, wanted)) == meeting
