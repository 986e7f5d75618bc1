import textwrap

import pytest

from bora.data import stdlib
from bora.data.read import read_documents
from bora.errors import UserError
from tests.data.inputs import data_group


def test_functions_and_methods_are_found_whole_and_once():
    source = textwrap.dedent(
        '''
        import x

        @decorated(
            1)
        def outer(a):
            """Doc.\fwith a form feed"""
            def inner():
                return 1
            return inner

        class C:
            class D:
                async def method(self):
                    return 2

        if True:
            def conditional(): pass
        '''
    )
    found = list(stdlib.functions(source))
    assert [f.splitlines()[0] for f in found] == ["@decorated(", "async def method(self):", "def conditional(): pass"]
    assert found[0].endswith("return inner")
    assert found[1] == "async def method(self):\n    return 2"


def test_the_default_gives_25_tasks_of_60_to_500_documents_on_this_python():
    table = read_documents(data_group("stdlib", prompt="{file}"))
    table = table[table["text"].str.len() > 100].drop_duplicates(["task", "text"])
    counts = table["task"].value_counts()
    assert len(counts) == 25
    assert counts.min() >= 58  # "about 60": it differs a little between Python versions
    assert counts.max() > 500
    assert not table["{file}"].str.contains("/tests?/").any()
    assert not {"tkinter", "turtle", "idlelib"} & set(counts.index)


def test_a_module_without_source_is_refused():
    with pytest.raises(UserError, match=r"^data\.modules=no_such_module: .* holds no source file of it"):
        read_documents(data_group("stdlib", modules=["json", "no_such_module"]))
