"""Profiles: complete, sourced, and wrong ones refused by name."""

import tomllib

import pytest

from stars_deploy.assets import asset
from stars_deploy.config.profile import load_profile, parse_profile, profile_names
from stars_deploy.errors import RecipeError


def document(name):
    return tomllib.loads(asset("hardware_profiles", f"{name}.toml").read_text(encoding="utf-8"))


def test_the_packaged_profiles_load_and_carry_their_name():
    assert {"loihi1", "loihi2", "reference"} <= set(profile_names())
    for name in profile_names():
        assert load_profile(name).name == name


def numbers(value, path=()):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from numbers(child, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, child in enumerate(value):
            yield from numbers(child, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("name", profile_names())
def test_every_number_has_a_source(name):
    content = document(name)
    for *section, key in numbers(content):
        if [*section, key] == ["schema"]:
            continue
        table = content
        for part in section:
            table = table[part]
        assert table["source"], f"{section} {key}"
        unit_named = key == "value" or section == ["tolerances"] or "core_kinds" in section
        assert unit_named


@pytest.mark.parametrize("name", ["loihi1", "loihi2", "loihi2-kapoho-point", "hala-point"])
def test_units_stand_in_the_keys_of_energy_and_time(name):
    content = document(name)
    for section, unit in (("energy", "_pj"), ("timing", "_ns")):
        for key, value in content[section].items():
            assert not isinstance(value, dict) or key.endswith(unit)
        assert content[section]["kind"] == "modeled"


def test_values_that_other_parts_rely_on():
    loihi1, loihi2 = load_profile("loihi1"), load_profile("loihi2")
    for profile in (loihi1, loihi2):
        assert profile.tolerances.accuracy_delta == 0.01
        assert profile.tolerances.total_spikes_relative == 0.03
        assert profile.tolerances.layer_spikes_relative == 0.10
        assert profile.energy.synaptic_operation_pj.value == 23.6  # Davies 2018, table 2
        assert profile.arithmetic.threshold_bits.value == 17
    assert loihi1.arithmetic.message_bits is None
    assert loihi2.arithmetic.message_bits.value == 8
    assert loihi2.energy.extrapolated_from == "loihi1"
    assert loihi1.limits.neurons_per_core.value == 1024
    assert loihi1.limits.mesh == (8, 4, 4)  # 32 tiles of 4 cores are its 128 cores
    assert loihi2.limits.mesh is None and loihi2.limits.input_axons_per_core is None
    reference = load_profile("reference")
    assert reference.arithmetic is None and reference.energy is None
    assert reference.tolerances.accuracy_delta == 0


def test_systems_of_loihi_2_differ_in_their_cores_only():
    single = load_profile("loihi2")
    for name, chips, cores in (("loihi2-kapoho-point", 8, 960), ("hala-point", 1152, 140544)):
        system = load_profile(name)
        assert system.limits.cores_of_system == cores and system.limits.chips.value == chips
        for section in ("arithmetic", "operators", "tolerances", "energy", "timing"):
            assert getattr(system, section) == getattr(single, section)
        assert system.limits.per_core == single.limits.per_core


def test_the_integrate_and_fire_chip():
    speck = load_profile("speck2f")
    assert speck.identity.family == "integer-if"
    assert speck.arithmetic.decay_bits is None and speck.arithmetic.message_bits is None
    assert speck.limits.cores == 9 and not speck.limits.splits
    words = [kind.synaptic_memory_bit // 8 // 1024 for kind in speck.limits.core_kinds
             for _ in range(kind.cores)]  # fmt: skip
    assert sorted(words) == sorted([16, 16, 16, 32, 32, 64, 64, 16, 16])  # sinabs: Ki weights
    assert speck.convolution.strides.value == (1, 2, 4, 8)


OWN = """
schema = 1
[identity]
name = "mine"
family = "integer-if"
description = "a chip of 4 cores"
[arithmetic]
spike_comparison = "strict"
reset = "hard_to_zero"
weight_bits = { value = 4, source = "me", confidence = "choice" }
accumulator_magnitude_bits = { value = 15, source = "me", confidence = "choice" }
state_magnitude_bits = { value = 15, source = "me", confidence = "choice" }
state_shift_bits = { value = 0, source = "me", confidence = "choice" }
threshold_bits = { value = 15, source = "me", confidence = "choice" }
bias_magnitude_bits = { value = 7, source = "me", confidence = "choice" }
bias_exponent_max = { value = 0, source = "me", confidence = "choice" }
message_bits = { value = 8, source = "me", confidence = "choice" }
[limits]
cores_per_chip = { value = 4, source = "me", confidence = "choice" }
neurons_per_core = { value = 400, source = "me", confidence = "choice" }
[operators]
supported = ["Input", "Output", "Conv2d", "Affine", "Flatten", "IF"]
source = "me"
[tolerances]
accuracy_delta = 0.5
total_spikes_relative = 1.0
layer_spikes_relative = 1.0
source = "me"
"""


def test_one_file_is_enough_for_a_chip_of_ones_own(tmp_path):
    from test_check_findings import if_chain

    from stars_deploy.targets.loihi import lower
    from stars_deploy.validation.check import examine

    (tmp_path / "mine.toml").write_text(OWN)
    profile = load_profile(tmp_path / "mine.toml")
    examined = examine(if_chain(), profile)
    assert not [f for f in examined.findings if f.severity == "error"]
    assert examined.placement.cores == 2 and examined.placement.cores_available == 4
    weights = lower(if_chain(), profile).arrays["w.fc"]
    assert weights.min() >= -8 and weights.max() <= 7  # 4 bits


def own(old, new):
    return tomllib.loads(OWN.replace(old, new))


NOTE = 'source = "me", confidence = "choice"'


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (own("[limits]", f"decay_bits = {{ value = 12, {NOTE} }}\n[limits]"), "decay_bits"),
        (own('"integer-if"', '"loihi"'), "decay_bits"),
        (own('"IF"]', '"IF", "LIF"]'), "no LIF"),
        (own("[limits]", f"[limits]\nmesh_columns = {{ value = 1, {NOTE} }}\nmesh_rows = "
             f"{{ value = 1, {NOTE} }}\ncores_per_tile = {{ value = 2, {NOTE} }}"),
         "below cores_per_chip"),
        (own("[operators]", "[[limits.core_kinds]]\ncores = 1\nneurons = 1\n"
             'synaptic_memory_bit = 1\nsource = "me"\nconfidence = "choice"\n[operators]'),
         "say the same thing"),
    ],
)  # fmt: skip
def test_limits_that_contradict_each_other(content, named):
    with pytest.raises(RecipeError, match=named):
        parse_profile(content, "mine.toml")


def test_an_unknown_profile_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'loihi2'"):
        load_profile("lohi2")
    with pytest.raises(RecipeError, match="truenorth"):
        load_profile("truenorth")


def test_a_file_of_the_user_wins_over_a_packaged_name(tmp_path, monkeypatch):
    text = asset("hardware_profiles", "loihi2.toml").read_text(encoding="utf-8")
    (tmp_path / "loihi2").write_text(text.replace('name = "loihi2"', 'name = "mine"'))
    monkeypatch.chdir(tmp_path)
    assert load_profile("loihi2").name == "mine"
    assert load_profile(tmp_path / "loihi2").name == "mine"


def changed(*path_and_value):
    *path, last, value = path_and_value
    content = document("loihi2")
    table = content
    for key in path:
        table = table[key]
    table[last] = value
    return content


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (changed("limits", "neurons", {}), "neurons_per_core"),  # the nearest valid key
        (changed("energy", "spike_within_tile_pj", 1.7), "spike_within_tile_pj"),
        (changed("arithmetic", "weight_bits", "source", ""), "source"),
        (changed("arithmetic", "weight_bits", "value", -1), "value"),
        (changed("arithmetic", "weight_bits", "confidence", "sure"), "confidence"),
        (changed("tolerances", "accuracy_delta", 2.0), "accuracy_delta"),
        (changed("tolerances", "accuracy_delta", float("nan")), "accuracy_delta"),
        (changed("identity", "family", "truenorth"), "family"),
        (changed("identity", "family", "reference"), "arithmetic"),
        ({k: v for k, v in document("loihi2").items() if k != "arithmetic"}, "arithmetic"),
        ({k: v for k, v in document("loihi2").items() if k != "operators"}, "operators"),
        (changed("schema", 2), "schema"),
    ],
)
def test_wrong_profiles_are_refused_by_key(content, named):
    with pytest.raises(RecipeError, match=named):
        parse_profile(content, "mine.toml")


@pytest.mark.parametrize("text", ["", "x", "[identity", "\xff"])
def test_files_that_are_no_profiles(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        load_profile(path)


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        # Nothing wider can be written: network.json holds the ranges of Lava's fixed point.
        ("arithmetic", "weight_bits", 1, "expected 2 to 8"),
        ("arithmetic", "weight_bits", 9, "expected 2 to 8"),
        ("arithmetic", "accumulator_magnitude_bits", 18, "expected 1 to 17"),
        ("arithmetic", "state_magnitude_bits", 24, "expected 1 to 23"),
        ("arithmetic", "state_magnitude_bits", 6, "expected 7 to 23"),
        ("arithmetic", "threshold_bits", 0, "expected 1 to 17"),
        ("arithmetic", "bias_magnitude_bits", 13, "expected 1 to 12"),
        ("arithmetic", "bias_exponent_max", 8, "expected 0 to 7"),
        ("arithmetic", "message_bits", 1, "expected 2 to 24"),
        # A leak is computed with these two alone; others would be ignored, not simulated.
        ("arithmetic", "decay_bits", 8, "expected 12"),
        ("arithmetic", "state_shift_bits", 7, "expected 0 to 6"),
        # Chips that hold nothing, and systems that no memory of ours holds.
        ("limits", "chips", 0, "greater than or equal to 1"),
        ("limits", "cores_per_chip", 0, "greater than or equal to 1"),
        ("limits", "cores_per_chip", 10**12, "key 'limits': .* at most 1048576"),
        ("limits", "neurons_per_core", 0, "greater than or equal to 1"),
        ("limits", "synaptic_memory_per_core_bit", 0, "greater than or equal to 1"),
        ("limits", "neurons_per_core", 10**400, "less than or equal to"),
        ("limits", "chips", True, "valid integer"),
    ],
)
def test_ranges_that_nothing_could_hold_or_compute(section, key, value, expected):
    with pytest.raises(RecipeError, match=expected):
        parse_profile(changed(section, key, "value", value), "mine.toml")


def test_a_leak_is_rounded_six_bits_below_the_activation():
    content = changed("arithmetic", "state_shift_bits", "value", 3)
    content["arithmetic"]["state_magnitude_bits"]["value"] = 20
    with pytest.raises(RecipeError, match=r"state_shift_bits = 3: .* write 6"):
        parse_profile(content, "mine.toml")


def test_a_bare_number_is_told_what_its_table_holds():
    content = document("loihi2")
    content["limits"]["chips"] = 1
    with pytest.raises(RecipeError, match=r"limits.chips' .* keys value, source, confidence"):
        parse_profile(content, "mine.toml")
