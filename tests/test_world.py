"The synthetic world of the default settings, to the byte."

from pathlib import Path

from dilo.config import load_settings
from dilo.data import open_arrays, pack, read_index
from dilo.data.index import index_world

ROOT = Path(__file__).resolve().parents[1]


def test_the_default_world_is_the_same_bytes_everywhere(tmp_path):
    data = load_settings(ROOT / "params.yaml").data
    world = data.world.model_copy(update={"scenes": 50})
    checksum = index_world(tmp_path / "raw", data.model_copy(update={"world": world}), ROOT)
    assert checksum == "0df9c54fb8885b5750e6b4de790b809d4d06824729cf24094016b64a4af4f87f"
    index = read_index(tmp_path / "raw")
    assert len(index) == data.world.train + data.world.val + 50
    pack(tmp_path / "raw", tmp_path / "arrays", size=data.size, progress=False)
    packed = open_arrays(tmp_path / "arrays")
    assert packed.images.shape == (5050, 3, 64, 64) and packed.masks.shape == (5050, 1, 64, 64)
    assert (packed.rows("train").size, packed.rows("val").size, packed.learning_rows.size) == (4000, 1000, 50)
    families = packed.families
    assert set(families[packed.rows("train")]) == set(range(10)) and set(families[packed.learning_rows]) == {-1}
