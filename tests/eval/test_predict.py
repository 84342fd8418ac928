"""What is said of one image that cannot be asked about: no samples, rows or recipe keys."""

import pytest
from PIL import Image

from vlm_r1.errors import UserError
from vlm_r1.eval import predict


@pytest.mark.parametrize(
    ("image", "question", "options", "message"),
    [
        ("nope.png", "what", {}, 'image "nope.png" does not exist; give the path of an image file'),
        ("text.png", "what", {}, r'image "text.png" cannot be read \(.*\); give the path of an image file'),
        ("a.png", "what", {"task": "rek"}, '--task: unknown task "rek": did you mean "rec"'),
        ("a.png", "what", {"template": "r2"}, '--template: "r2" is neither a template'),
        ("a.png", "<|image_pad|>", {}, r"the text holds an image placeholder \(<\|image_pad\|>\); remove it"),
    ],
)
def test_what_cannot_be_asked_is_said_in_the_words_of_the_command(
    tmp_path, monkeypatch, image, question, options, message
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save("a.png")
    (tmp_path / "text.png").write_text("no image")
    if "image_pad" not in question:
        monkeypatch.setattr(predict, "open_answering", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(UserError, match="^" + message):
        predict.ask("tiny", tmp_path.__class__(image), question, **options)
