"The embedded world of the default settings, to the byte."

from dilo.config import Settings, World
from dilo.data import open_arrays, pack, read_index, write_world


def test_the_default_world_is_the_same_bytes_everywhere(tmp_path):
    w = World()
    checksum = write_world(
        tmp_path / "raw", train=w.train, val=w.val, correlation=w.correlation, seed=w.seed, progress=False
    )
    assert checksum == "9828b6799b81fb27cfd2168a80da9c3727f5b131400a1e09572c637ce811c111"
    assert len(read_index(tmp_path / "raw")) == w.train + w.val
    pack(tmp_path / "raw", tmp_path / "arrays", size=Settings.model_fields["data"].default.size, progress=False)
    packed = open_arrays(tmp_path / "arrays")
    assert packed.images.shape == (5000, 3, 64, 64) and packed.masks.shape == (5000, 1, 64, 64)
    assert (packed.rows("train").size, packed.rows("val").size) == (4000, 1000)
