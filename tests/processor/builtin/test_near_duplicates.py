from small_doge.processor.builtin.near_duplicates import NearDuplicates

LONG = (
    "Return the mean of the values along the given axis. The sum of all elements is divided by their number, and an "
    "empty input raises an error that names the axis and the shape of what was given."
)


def test_a_copy_with_another_name_and_other_figures_is_a_near_copy():
    copies = NearDuplicates()
    assert copies.add(f"foo: {LONG} 12", ignore=["pkg.foo"])
    assert not copies.add(f"bar: {LONG} 999", ignore=["pkg.bar"])


def test_similar_texts_are_kept_in_one_group_and_different_ones_are_not():
    copies = NearDuplicates()
    assert copies.add(LONG)
    assert copies.add(
        f"{LONG} Weights may be passed too: each value then counts as often as its own weight tells it to do."
    )
    assert copies.add("Open the file at this path for reading, and close it once the block has come to its end.")
    assert [copies.group(i) for i in range(3)] == [0, 0, 2]
