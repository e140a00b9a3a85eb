"""`python -m tests.golden` writes the golden reports anew from the committed records."""

import shutil

from tests.golden.said import GOLDEN, questions, said_of

shutil.rmtree(GOLDEN, ignore_errors=True)
for question in questions():
    for name, text in said_of(question).items():
        (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_text(text)
    print(question)
