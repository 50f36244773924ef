"""Size and sha256 of published files.

They are needed for servers that give no hash, and for files that users have already.

THINGS-EEG2: from the git-annex keys of https://github.com/nemarDatasets/nm000232 at 0e548b8
(CC BY 4.0), which holds the files that OSF publishes. Only for image_metadata.npy was it checked
that OSF serves exactly these bytes.
THINGS-MEG: from the git-annex keys of https://github.com/OpenNeuroDatasets/ds004212 at 136f529
(CC0). The categories of THINGS: https://github.com/ViCCo-Group/THINGS-data at 5e0ecca (CC0).
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFile:
    """Size in bytes and hash of a published file."""

    size: int
    sha256: str


KnownFiles = Mapping[str, KnownFile]  # by name


def _read(table: str, prefix: str = "") -> KnownFiles:
    """Read lines of name, size and sha256; `prefix` is the beginning of all names."""
    rows = (line.split() for line in table.strip().splitlines())
    return {f"{prefix}{name}": KnownFile(int(size), sha256) for name, size, sha256 in rows}


THINGS_EEG2_IMAGES = _read("""
image_metadata.npy 656579 681a75633c59a356a66ca19a277429c1d48a00a98405ff96e53ee0b9f00b397c
test_images.zip 8129948 57ed472cd88f68ccf88e9ecbadf3da91ac222d8548684d5680be95bcf47ec14a
training_images.zip 655039265 dc9cc627141ba230641f729f84b80eb01f0a963d288c971eefcf76b4a7581f3a
""")

THINGS_EEG2_PREPROCESSED = _read("""
sub-01.zip 1071722467 f25d5ea30ba6811edd7ebd460d7b271edaf527b6920ab2d3d6e7950e9ee9639f
sub-02.zip 1071516660 e1eba2d74009c6dd41becf53d84b8d47532103b41110a5855e7e286bcca6fe41
sub-03.zip 1071567672 ec12b31410b8161f5b274b4c61890a615e5fdbb5e58e6e9325a0188272daa936
sub-04.zip 1071421033 eec31590d21248d9cc8caf3b93f5711b2c24540f080eab4f83f152155f5a6eb5
sub-05.zip 1072655693 d353e154e840ff9c07b2de19db2105626df4bc556313365cff392dd56d8df40e
sub-06.zip 1072667739 2aa40414e495b44e57ab98c345b19085c769d14b4ba3704ba6fdf99dfc40060f
sub-07.zip 1071671310 729cf0136b1c4e0cdfecd79a7a0c25fb2a741a7baed9d775cfb8ed1507bb8ff4
sub-08.zip 1071848309 c604d30723c65c25a612888bc1c16a83a58f26b5aab9a146d5029c626ffb5a71
sub-09.zip 1071469818 7c5a67083e5c5b73f2d2ede03d7e76f082f6d61ae4f74ec08783ce5841b0604b
sub-10.zip 1071595380 6cd7111bbd8d62d29b05abe0533fa6bca8f634ef85ce9c19ae8ab0a853681094
""")

_THINGS_MEG_EPOCHS = _read(
    """
P1-epo-1.fif 2062925822 2cdba9ee10e9c0e38f4af8c0cc18db70232e8a5120df83e20b3e96834322691d
P1-epo-2.fif 2062921582 a3c88feb9b011a10c5d62113afb05a7097ff5b96bfba209c5197e54eb5144713
P1-epo-3.fif 2062932029 6d2cfc6db7529b12027bf9897e33e1143a91e838dd49f259b7dc2e9c7207713c
P1-epo.fif 2062925832 f86409d6b0a47f0584e9dd20e7d59cdd4def78899537f2d908da75dd27693efb
P2-epo-1.fif 2062925748 e27f913e4bd816993363066ad484139c953f55394e9a3cb5c5bec240d0fbcf8f
P2-epo-2.fif 2062926052 dd8d0f23d878a2d747dc9c0f6ee83dde8ef7f8e5e0eae38a8069a11ebab05fa5
P2-epo-3.fif 2062928825 52200eb4b46340185970d6df82ba5f5169e396a63efaead4b82268014b96b1fa
P2-epo.fif 2062924957 a73ace29e8f6fa984016a102741019be5b085570ba707d30667d2af6fffe82c6
P3-epo-1.fif 2062925330 d825f527a3643c03246b5e38c6c96f0ad2d714fbd4251d66efd237023d9a99cb
P3-epo-2.fif 2062921848 d753fe32c39d18481839ab5db7ee2b83c9115198d160ec40adb7a3882dda8382
P3-epo-3.fif 2062932000 0938e99725eb553dac25bfc70859a9d455069db993816a6c6910edb70b34b194
P3-epo.fif 2062925192 89b9716814f40c71b8ac0cf7c6e71e64a0666ae09470390a2f6e6d67f99d6ba2
P4-epo-1.fif 2062925567 99fea43c22741bd06a77670b03b228de6ba271b4e1a6565fa5e085852aaf9d48
P4-epo-2.fif 2062925392 8222bf09b30f88188d38e65fce8d10ae5989f30f9afc9c5c9b3ff5fdf4ca6251
P4-epo-3.fif 2062928271 d6be250ded9464acae2d1008d10eaa6656562a039be08dc530ffb52dbfe1345e
P4-epo.fif 2062925347 a37b41601120591cbce935c53bc3f6594569071064a7929b0df6703d0ac054d4
""",
    prefix="preprocessed_",
)

_THINGS_MEG_TRIALS = _read("""
sample_attributes_P1.csv 3386624 f41e8a2f123a5f82fa7ece3c81cf6630bd76ada7414c968a61d70b91c3021d08
""")

# In the same repository, so of the same commit
HUMAN_SIMILARITY = {
    "names_1854.csv": KnownFile(
        16998, "be71e2106cae40ed93bdd82a4d87699b69845937ae54f4190400c0190e3154c4"
    ),
    "spose_embedding_66d_sorted.txt": KnownFile(
        3303874, "6a485922fe22c10b2eb920140198488451d44ac6de0c6be5e8ee8eec8a2007cc"
    ),
}

THINGS_CATEGORIES = {
    "Categories_final_20200131.tsv": KnownFile(
        254965, "968d45a1a2fb8def83b33661031a1c473a61a8fe208c8c0af3474784c6bbcd95"
    ),
}

THINGS_MEG = {**_THINGS_MEG_EPOCHS, **_THINGS_MEG_TRIALS}
