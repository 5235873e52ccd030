# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from sklearn.metrics import mutual_info_score

from recipes_lib.recipes.nac.specialisation import mutual_information, specialisation


def sample(count: int = 400, modules: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Use of modules, of which number 1 follows the factor, and the factor."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randint(4, (count,), generator=generator)
    use = torch.randn(count, modules, generator=generator)
    use[:, 1] += 3 * factor
    return use, factor


def test_bits_are_those_of_scikit_learn_for_the_same_groups():
    use, factor = sample()
    found = mutual_information(use, factor, bins=5)
    for module in range(3):
        cuts = torch.quantile(use[:, module], torch.tensor([0.2, 0.4, 0.6, 0.8]))
        theirs = mutual_info_score((use[:, module, None] > cuts).sum(1), factor) / torch.log(torch.tensor(2.0))
        assert float(found[module]) == pytest.approx(float(theirs), abs=1e-6)


def test_use_that_is_the_factor_has_all_its_bits_and_constant_use_none():
    factor = torch.arange(400) % 4
    use = torch.stack([factor.float(), torch.zeros(400)], dim=1)
    assert mutual_information(use, factor).tolist() == pytest.approx([2.0, 0.0], abs=1e-12)


def test_only_a_module_that_follows_the_factor_is_above_chance():
    use, factor = sample()
    found = specialisation(use, factor, generator=torch.Generator().manual_seed(1))
    above = found.bits - found.chance
    assert above[1] > 0.5
    assert above[[0, 2]].abs().max() < 0.03
    assert found.p_value == pytest.approx(1 / 201)


def test_without_a_relation_the_p_value_is_uniform():
    generator = torch.Generator().manual_seed(2)
    values = []
    for _ in range(40):
        use, factor = torch.randn(80, 4, generator=generator), torch.randint(3, (80,), generator=generator)
        values.append(specialisation(use, factor, generator=generator, permutations=30).p_value)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.17)
    assert min(values) >= 1 / 31


def test_chance_has_some_bits_too():
    use, factor = sample(count=40)
    found = specialisation(use, factor, generator=torch.Generator().manual_seed(0))
    assert found.chance.min() > 0.05


def test_other_sizes_are_refused():
    use, factor = sample()
    with pytest.raises(ValueError, match="399 values of the factor for the use of modules in 400 samples"):
        mutual_information(use, factor[1:])
    with pytest.raises(ValueError, match="bins = 1; at least 2"):
        mutual_information(use, factor, bins=1)
