"""Print the standard library's files of five functions and more, separated by commas, as data.modules takes them."""

from bora.data.stdlib import functions, source_files, source_root

SKIPPED = {"test", "tests", "idle_test", "lib2to3", "site-packages", "turtledemo"}

root, found = source_root(), []
for file in sorted(root.rglob("*.py")):
    place = file.relative_to(root).with_suffix("")
    name = ".".join(place.parts)
    if not SKIPPED & set(place.parts) and name.replace(".", "").replace("_", "").isalnum():
        text = file.read_text("utf-8-sig", errors="replace")
        if "\n" in text and source_files(name, root) and sum(len(f) > 60 for f in functions(text)) >= 5:
            found.append(name)
print(",".join(found))
