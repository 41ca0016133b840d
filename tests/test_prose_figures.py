"""The figures that users read are those of the benchmarks: sentences and tables of the pages against the JSON below docs/.

A sentence is listed as it stands in its page, with a # for each figure, and what the figure is. A changed page, a changed
sentence and a changed measurement each break the list; so does a sentence beside a link to a benchmark that is not listed.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from measured import (
    ACCURACY,
    ANCHORS,
    CACHE,
    CANDIDATES,
    CONFIRMED,
    DEMO,
    DENORMALS,
    DERIVATIVES,
    ESCN,
    EXPLORED,
    EXPLORED_TEACHER,
    FIGURES,
    FOUNDATION,
    GEMNET,
    GENERATED_ROWS,
    IN_TIME,
    LABELS,
    LARGE_CACHE,
    LONG_CACHE,
    LOSS,
    LOSS_ON_GPU,
    MAIN,
    OC20,
    OF_SIZES,
    OOD,
    PRECISION,
    READ_AHEAD,
    SCALES,
    SCREENED,
    SEEDS_OF_LINES,
    SHUFFLE,
    SINGLE,
    SIZES,
    STEP,
    STEP_OF_TRIED,
    TRIED,
    TRIED_OF_GEMNET,
    TUNING,
    Line,
    absolute_drift,
    amounts,
    at_500_k,
    best_of_candidates,
    best_screened,
    cached_over_undistilled,
    changed,
    coefficients,
    cold,
    conserving,
    cost,
    criteria,
    disk,
    drift,
    engine_speed,
    errors,
    explored,
    gap_intervals_of_sevennet,
    gap_of_sevennet,
    gaps,
    gaps_of_chgnet,
    gaps_of_potential,
    is_within,
    larger,
    largest_of_sevennet,
    lasted,
    layout,
    less_than_n2n,
    load,
    look_alikes,
    mean_errors,
    missed,
    of,
    of_sevennet,
    online_over_undistilled,
    paired,
    relaxations_per_hour,
    relaxed_by_students,
    respa,
    scaled_recipe,
    screened,
    seeds,
    seeds_of_potential,
    shuffled,
    smaller,
    spearman,
    steps,
    taken_off_forces,
    throughput,
    tuned_steps,
    waiting,
)
from prose import ROOT, Claim, find, is_printed_as, uncovered, units

from benchmarks.accuracy.page import gap
from benchmarks.accuracy.plan import TEACHER, UNDISTILLED, Run
from benchmarks.accuracy.summary import GAPS, MEAN
from benchmarks.shuffle.report import seeds as seeds_of

SHUFFLED = ("buffer of 32", "buffer of 64")
LAYOUTS = ("LMDB, a value for 16 systems", "LMDB, a value for each system", "a plain file, `pread`")
README, DEMO_PAGE, OWN_DATA, USE = "README.md", "docs/demo.md", "docs/own-data.md", "docs/use.md"
TERMS, PAGE = "docs/terms.md", "docs/accuracy.md"
ENGINES_PAGE = "docs/engines.md"
TEACHERS, RECIPES = "docs/teachers.md", "docs/recipes.md"
GENERATE, EXPLORE = "docs/generate.md", "docs/explore.md"
RATTLED, MIXED = Line(), Line(structures="mixed9")
OTHERS = (MIXED, *(Line(structures=name) for name in ("displace9", "rattle3", "rattle1", "rattle30")))
PLAIN, WITHOUT_RELATIONS = Line("labelled", "mixed9"), Line("labelled_n2n_v2v_atoms")
FILLED, WEIGHTED, HESSIAN = Line("filled_" + OC20), Line("weighted_" + OC20), Line("recipe_atoms_100", "")
RESPONSES, ANEW = (
    Line(method, "mixed9_responses") for method in ("labelled_fifth_responses_10_300", "labelled_crack_n2n_v2v_atoms_300")
)
OF_GEMNET = "without_vectors_fifth_responses_40"
LONG, LONG_MIXED = Line(budget="double"), Line(structures="mixed9", budget="double")
RELAXED, MOVED = Line(structures="relax9"), Line(structures="md9")
SINGLE_TERMS = ("n2n", "relations", "v2v", "atom_energies")  # of students of SevenNet
INIT_RECIPES = (("painn", "all"), ("gemnet_dT", "all_without_vectors"))  # as `init` writes them
CHOSEN, DRAWN = Line(structures="select9of30"), Line(structures="random9of30")
SHORT, BEST, LONGEST = (
    Line("labelled_crack_n2n_v2v_atoms_300", "mixed9", budget) for budget in ("steps", "double", "triple")
)
LONG_PLAIN, LONGEST_PLAIN = (PLAIN._replace(budget=budget) for budget in ("double", "triple"))
GEMNET_LINES = [
    Line(name, "mixed9", budget, "gemnet_dT")
    for budget in ("steps", "triple")
    for name in ("labelled", "labelled_crack_n2n_atoms")
]
GRADIENTS = ("gemnet", "gradient"), ("painn", "direct"), ("painn", "gradient")
PAPER = "paper", "equiformer_v2_2"
ONE_BLOCK, TUNED_BLOCK = (
    {method: row for (asked, student, method), row in SCREENED.items() if (asked, student) == (question, "equiformer_v2_1")}
    for question in ("paper", "paper_tuned")
)
STARTS = "paper", "init"
SINGLE_OF_PAPER = "n2n_l0", "crack", "infonce"
BEST_OF_PAPER = best_of_candidates()
CLAIMS = [
    Claim(
        RECIPES,
        "had with `relations` 80 and `node_embeddings` of all degrees 10000, in the teacher's own units, # eV and # eV/Å, "
        "with the published ones # eV and # eV/Å; with `node_embeddings` of l = 0 by themselves at 10000 it had # eV and "
        "# eV/Å.",
        [
            TUNED_BLOCK[f"init_{of}"][name][0]
            for of in ("crack_n2n_tuned", "crack_n2n", "n2n_l0@10000")
            for name in GAPS.values()
        ],
    ),
    Claim(
        RECIPES,
        "All its coefficients times #, #, # and # were tried for PaiNN",
        [float(scale) / 40 for scale in SCALES],
    ),
    Claim(
        RECIPES,
        "relative to the undistilled student's, is #, #, # and # with the weights as they stand, #, #, # and # with the "
        "best factor, #, #, # and # with the worst.",
        [
            *(candidates[2] for candidates in scaled_recipe()),
            *map(min, scaled_recipe()),
            *map(max, scaled_recipe()),
        ],
    ),
    Claim(
        TEACHERS,
        "A relaxation takes its students # to # s of CPU in the median, where SevenNet takes # s, but they end # to # eV "
        "above its minima by its own energies",
        [
            *relaxed_by_students("seconds"),
            next(row["seconds"] for row in FOUNDATION["relaxations"] if not row["student"]),
            *relaxed_by_students("excess"),
        ],
    ),
    Claim(
        TEACHERS,
        "with # seeds of PaiNN and # of GemNet-dT, the recipe that `init` writes closes # % of the gap in PaiNN's energies "
        "on val_id and # % in GemNet-dT's, and # % and # % of that in the forces. "
        "Relations and atom energies by themselves, tuned for PaiNN, close # % and # %; in the mean of the four splits "
        "# % of that in the energies, where the recipe closes # %. With these two, # systems give # eV there, # without any "
        "term # eV.",
        [
            *(of_sevennet(*recipe, 1800, "val_id")["seeds"] for recipe in INIT_RECIPES),
            *(gap_of_sevennet(*recipe)[part] for part in (0, 1) for recipe in INIT_RECIPES),
            *gap_of_sevennet("painn", "relations_atoms"),
            *(gap_of_sevennet("painn", method, MEAN)[0] for method in ("relations_atoms", "all")),
            450,
            of_sevennet("painn", "relations_atoms", 450, MEAN)["energy_mae"][0],
            1800,
            of_sevennet("painn", UNDISTILLED, 1800, MEAN)["energy_mae"][0],
        ],
    ),
    Claim(
        TEACHERS,
        "with nothing tuned anew: the recipe that `init` writes closes # % of the gap in PaiNN's energies on val_id (# "
        "seed) and # % in GemNet-dT's (# seeds), and # % and # % of that in the forces.",
        [
            *(
                figure
                for recipe in INIT_RECIPES
                for figure in (gaps_of_potential("nequix", *recipe)[0], seeds_of_potential("nequix", *recipe))
            ),
            *(gaps_of_potential("nequix", *recipe)[1] for recipe in INIT_RECIPES),
        ],
    ),
    Claim(
        TEACHERS,
        "which has no l=1 embedding, closes # % of the gap in PaiNN's energies (# seed) and # % in GemNet-dT's (# seed), "
        "and # % and # % of that in the forces.",
        [
            *(
                figure
                for student in ("painn", "gemnet_dT")
                for figure in (gaps_of_chgnet(student)[0], seeds_of_potential("chgnet", student, "all_without_vectors"))
            ),
            *(gaps_of_chgnet(student)[1] for student in ("painn", "gemnet_dT")),
        ],
    ),
    Claim(
        ENGINES_PAGE,
        "In ASE it takes # times as many steps per second as with `OCPCalculator` at # atoms, # times at # and # times at #",
        [engine_speed(14), 14, engine_speed(66), 66, engine_speed(502), 502],
    ),
    Claim(
        ENGINES_PAGE,
        "with five seeds, a distilled GemNet-dT with direct forces completes # of # runs of # ps at constant energy, and "
        "drifts by # meV/atom/ps in these. With its gradient it completes # of #, and drifts by #. The PaiNN completes # of "
        "# and drifts by # with direct forces; with its gradient # of #, and #. In exchange the force errors are larger, # "
        "instead of # eV/Å and # instead of #",
        [
            *conserving("gemnet", "direct")[:2],
            load("gradient_forces")["drift_ps"],
            conserving("gemnet", "direct")[2],
            *(figure for line in GRADIENTS for figure in conserving(*line)[:3]),
            *(conserving(student, forces)[3] for student in ("gemnet", "painn") for forces in ("gradient", "direct")),
        ],
    ),
    Claim(
        ENGINES_PAGE,
        "with the distilled student and n = # a step costs # ms instead of #, but the energy drifts by # meV/atom/ps "
        "instead of # (# slabs from # K, # ps)",
        [
            2,
            respa("distilled", 2)["cost"],
            respa("none", 1)["cost"],
            respa("distilled", 2)["drift"],
            respa("none", 1)["drift"],
            *(load("respa")[name] for name in ("starts", "temperature", "ps")),
        ],
    ),
    Claim(
        README,
        "five seeds close # % and # % of the gaps in the mean of the four",
        SHORT.gaps(MEAN),
    ),
    Claim(
        README,
        "At # pairs it is # times as fast as the dense formula and takes # % of its memory, on 2 CPU threads; # pairs "
        "take # MB",
        [
            8000,
            LOSS["dense", 8000]["median"] / LOSS["ours", 8000]["median"],
            100 * LOSS["ours", 8000]["peak_mb"] / LOSS["dense", 8000]["peak_mb"],
            32000,
            LOSS["ours", 32000]["peak_mb"],
        ],
    ),
    Claim(
        README,
        "On an H100, # pairs take # ms, # times as fast as with torch operations. The dense formula is faster for few "
        "pairs: at # it takes # of our time",
        [
            32000,
            1e3 * LOSS_ON_GPU["ours", 32000]["median"],
            LOSS_ON_GPU["unfused", 32000]["median"] / LOSS_ON_GPU["ours", 32000]["median"],
            4000,
            LOSS_ON_GPU["dense", 4000]["median"] / LOSS_ON_GPU["ours", 4000]["median"],
        ],
    ),
    Claim(
        OWN_DATA,
        "a step from the cache takes # of one without a teacher for PaiNN h512 and # for GemNet-dT. Once the batches are "
        "loaded, it takes # and #",
        [cached_over_undistilled(student, loaded=loaded) for loaded in (False, True) for student in ("painn", "gemnet_dT")],
    ),
    Claim(
        DEMO_PAGE,
        "the recipe closes # % [#, #] of the energy gap and # % [#, #] of the force gap on val_id, and # % and # % on "
        "val_ood_both (# seeds). By itself, CRACK closes # % and # % on val_id, and the node embeddings # % and # %.",
        [
            *gaps("recipe_atoms_100", ends=True),
            *gaps("recipe_atoms_100", split=OOD),
            seeds("recipe_atoms_100"),
            *gaps("crack"),
            *gaps("n2n"),
        ],
    ),
    Claim(
        DEMO_PAGE,
        "Without the Hessian the recipe closes # % and # %, and a step takes # times as long as an undistilled one. For "
        "GemNet-dT the recipe with the Hessian closes # of both gaps.",
        [*gaps(OC20), cost(OC20), sum(gaps("hessian_100_without_vectors_atoms", GEMNET)) / 200],
    ),
    Claim(
        OWN_DATA,
        "An online 31M teacher makes a step of PaiNN h512 # [#, #] times as long",
        [STEP["online_over_undistilled"], *STEP["online_over_undistilled_spread"]],
    ),
    Claim(OWN_DATA, "with it a step takes more than # as long", [cost("hessian")]),
    *(
        Claim(EXPLORE, f"| {name} | # (# to #) | # of # | # | # | # |", explored(number))
        for number, name in enumerate(("as given", "after round 1", "after round 2"))
    ),
    Claim(
        EXPLORE,
        "the teacher lasts # ps from # of the # starts, the undistilled student from #, the student after two rounds "
        "from #.",
        [
            EXPLORED["stability"]["options"]["ps"],
            lasted(EXPLORED_TEACHER),
            len(EXPLORED["stability"]["starts"]["atoms"]),
            lasted("undistilled-0"),
            lasted("round-3/student"),
        ],
    ),
    Claim(
        EXPLORE,
        "From one start the teacher ends after # ps and the student after # ps",
        [min(at_500_k(name)["ps"]) for name in (EXPLORED_TEACHER, "round-3/student")],
    ),
    Claim(
        EXPLORE,
        "the force error falls from # to # eV/Å",
        [EXPLORED["rounds"][number]["errors"]["forces_mae"] for number in (0, 2)],
    ),
    Claim(
        EXPLORE,
        "is # meV/atom/ps after two rounds, as the teacher's #; it is # before them and # without distillation",
        [absolute_drift(name) for name in ("round-3/student", EXPLORED_TEACHER, "round-1/student", "undistilled-0")],
    ),
    Claim(DEMO_PAGE, "of O on # of the demo's surfaces", [len(DEMO["surfaces"])]),
    Claim(
        DEMO_PAGE,
        "| Spearman correlation of the adsorption energies with EMT | # [#, #] | # [#, #] | # |",
        [*spearman("undistilled"), *spearman("student"), spearman("teacher")[0]],
    ),
    Claim(
        DEMO_PAGE,
        "| energy drift, meV/atom/ps (median, min and max of # starts) | # [#, #] | # [#, #] | # [#, #] |",
        [len(DEMO["dynamics"]["student"]), *drift("undistilled"), *drift("student"), *drift("teacher")],
    ),
    Claim(
        DEMO_PAGE,
        "The distilled student completes # times the teacher's relaxations per hour. At the published sizes, on 2 CPU "
        "threads, a PaiNN h512 has # [#, #] times the throughput of EquiformerV2 153M and # [#, #] times that of 31M.",
        [
            relaxations_per_hour("student") / relaxations_per_hour("teacher"),
            *throughput("eqV2_153M"),
            *throughput("eqV2_31M"),
        ],
    ),
    Claim(
        USE,
        "the demo's student drifts by # [#, #] meV/atom/ps, its teacher by # [#, #], a student trained on labels only by # "
        "[#, #] (median, min and max of # starts)",
        [*drift("student"), *drift("teacher"), *drift("undistilled"), len(DEMO["dynamics"]["student"])],
    ),
    Claim(
        "docs/architectures.md",
        "A 31M teacher makes a step of PaiNN h512 about # times as long, a 153M one # times.",
        [online_over_undistilled("eqV2_31M"), online_over_undistilled("eqV2_153M")],
    ),
    Claim(
        "docs/running.md",
        "bfloat16 moves the energies of the demo's EquiformerV2 by # eV and its forces by # eV/Å, whose errors are # and #",
        [PRECISION[name] for name in ("energy", "forces", "energy float32 labels", "forces float32 labels")],
    ),
    Claim(
        "docs/running.md",
        "a training step of the demo's PaiNN took # times as long with them, a forward # times",
        [DENORMALS["step"], DENORMALS["forward"]],
    ),
    Claim(
        "docs/cache.md",
        "A step of the demo's PaiNN waited # ms for its # systems, and waits # ms",
        [waiting("in the step"), READ_AHEAD["batch_size"], waiting("ahead")],
    ),
    Claim(
        "docs/cache.md",
        "Read from a cold page cache, a record of the cache takes # times its bytes in uniform order and # times in blocks. "
        "A system of fairchem's LMDB takes # and # times, on a disk around whose faults the kernel reads # kB",
        [*cold("cache"), *cold("dataset"), SHUFFLE["cost"]["around_kb"]],
    ),
    Claim(
        "docs/cache.md",
        "a buffer of 32 systems, two batches, in blocks of 16 raised the errors of PaiNN by # ± # eV and # ± # eV/Å (# "
        "seeds). One of 64 changed them by # ± # eV and # ± # eV/Å (# seeds; mean of the four splits, paired, 95 %",
        [value for order in SHUFFLED for value in (*shuffled(order), len(seeds_of(SHUFFLE, order)))],
    ),
    Claim(
        "docs/cache.md",
        "Of # records of # kB, # read in random order from a cold page cache",
        [CACHE["layout_size"], LARGE_CACHE["record_bytes"] / 1e3, CACHE["reads"]],
    ),
    *(Claim("docs/cache.md", f"| {row} | # | # | # |", layout(number)) for number, row in enumerate(LAYOUTS)),
    Claim("docs/cache.md", "and # % less disk than the second", [100 * (1 - disk(2) / disk(1))]),
    Claim(
        "docs/cache.md",
        "reads # times the bytes of a record from a cold page cache, and # times for its energy and forces",
        [
            LARGE_CACHE["cold"][fields]["bytes"] / LARGE_CACHE["record_bytes"]
            for fields in ("all fields", "energy and forces")
        ],
    ),
    Claim(
        "docs/cache.md",
        "With # million systems it opens in # ms and is finished in # s, with # bytes of memory a system",
        [
            LONG_CACHE["systems"] / 1e6,
            1e3 * LONG_CACHE["open_seconds"],
            LONG_CACHE["finish_seconds"],
            1e6 * LONG_CACHE["finish_mb"] / LONG_CACHE["systems"],
        ],
    ),
    Claim(
        GENERATE,
        "On mixed structures the teacher's labels by themselves close # % and # % of the gap on val_id, and with the "
        "recipe # % and # %. In three times the steps it is # % and # %, and # % and # %; in the mean of the four splits # "
        "% and # %, and # % and # %; the recipe has "
        "`atom_energies` # here",
        [
            *(gap for line in (PLAIN, SHORT, LONGEST_PLAIN, LONGEST) for gap in line.gaps()),
            *(gap for line in (LONGEST_PLAIN, LONGEST) for gap in line.gaps(MEAN)),
            coefficients(SHORT.method)["atom_energies"],
        ],
    ),
    Claim(
        GENERATE,
        "GemNet-dT, in its # steps: # % and # % by themselves, # % and # % with the recipe; in three times as many # % and "
        "# %, # % and # %.",
        [
            GEMNET_LINES[0].row()["steps"],
            *(gap for line in GEMNET_LINES for gap in line.gaps()),
        ],
    ),
    Claim(
        GENERATE,
        "without them the errors of PaiNN change by # [#, #] eV and # [#, #] eV/Å on val_id, and by # [#, #] eV and # [#, "
        "#] eV/Å in the mean of the four.",
        [end for split in ("val_id", MEAN) for end in changed(WITHOUT_RELATIONS, RATTLED, split)],
    ),
    Claim(
        GENERATE,
        "`embedding_response` # and `force_response` # in a fifth of the steps, beside `node_embeddings` # and without "
        "relations, change the errors of the recipe with `atom_energies` # by # [#, #] eV and # [#, #] eV/Å on val_id, # "
        "[#, #] eV and # [#, #] eV/Å in the mean of the four, at # times the CPU time of a training. That is # % of the "
        "errors of the forces on val_id; on the # systems it is # %",
        [
            *(coefficients(RESPONSES.method)[name] for name in ("embedding_response", "force_response", "node_embeddings")),
            coefficients(ANEW.method)["atom_energies"],
            *(end for split in ("val_id", MEAN) for end in changed(RESPONSES, ANEW, split)),
            RESPONSES.row()["cpu_minutes"] / ANEW.row()["cpu_minutes"],
            100 * (1 - RESPONSES.errors()[1] / ANEW.errors()[1]),
            300,
            100 * TRIED[DERIVATIVES, "full"]["less_forces"][0],
        ],
    ),
    Claim(
        GENERATE,
        "Compared with nine rattled copies, mixed structures change the errors by # eV and # eV/Å on val_id, # eV and # "
        "eV/Å in the mean of the four; copies on other places of the surface by # eV and # eV/Å, # eV and # eV/Å; three "
        "rattled copies by # eV and # eV/Å, # eV and # eV/Å; one by # eV and # eV/Å, # eV and # eV/Å; thirty, in as many "
        "steps, by # eV and # eV/Å, # eV and # eV/Å.",
        [figure for line in OTHERS for split in ("val_id", MEAN) for figure in line.less_recipe(split)],
    ),
    Claim(
        GENERATE,
        "those of relaxations close # % and # % of the gap on val_id, those of dynamics # % and # %.",
        [*RELAXED.gaps(), *MOVED.gaps()],
    ),
    Claim(
        GENERATE,
        "Mixed structures took # s of CPU time, nine rattled copies # s, three # s; a training with the recipe takes # s.",
        [
            *(LABELS[name, 0]["cpu_seconds"] for name in ("mixed9", "rattle9", "rattle3")),
            60 * RATTLED.row()["cpu_minutes"],
        ],
    ),
    Claim(
        GENERATE,
        "nine chosen by farthest-point sampling leave # eV and # eV/Å on val_id and # eV and # eV/Å in the mean of the "
        "four, nine at random # eV and # eV/Å, # eV and # eV/Å. Paired, selection changes them by # [#, #] eV and # [#, #] "
        "eV/Å, # [#, #] eV and # [#, #] eV/Å.",
        [
            *(error for line in (CHOSEN, DRAWN) for split in ("val_id", MEAN) for error in line.errors(split)),
            *(end for split in ("val_id", MEAN) for end in changed(CHOSEN, DRAWN, split)),
        ],
    ),
    Claim(
        GENERATE,
        "`labels: fill`, compared with the teacher's labels for all, changes the errors on val_id by # [#, #] eV and # [#, "
        "#] eV/Å.",
        changed(FILLED, RATTLED),
    ),
    Claim(
        GENERATE,
        "With `data_label_weight` 9, so that the parents count as their copies do, it is # eV and # eV/Å.",
        WEIGHTED.less_recipe(),
    ),
    Claim(
        GENERATE,
        "Twice the steps take # times as long as labels only, the recipe with the Hessian on the 300 systems # times.",
        [LONG.row()["steps"] * cost(OC20) / steps("undistilled"), cost("recipe_atoms_100")],
    ),
    Claim(
        GENERATE,
        "The Hessian closes # % and # % of the gap on val_id, # % and # % in the mean of the four. Twice the steps on mixed "
        "structures close # % and # %, # % and # %; with `atom_energies` 300, as in the demo, # % [#, #] and # % [#, #], "
        "# % [#, #] and # % [#, #].",
        [
            *(gap for line in (HESSIAN, LONG_MIXED) for split in ("val_id", MEAN) for gap in line.gaps(split)),
            *(end for split in ("val_id", MEAN) for end in BEST.gap_intervals(split)),
        ],
    ),
    Claim(PAGE, "of # steps with one seed on val_id says", [SCREENED["weights", "painn", "n2n"]["steps"]]),
    Claim(
        PAGE,
        "misses # of the teacher's variance between systems and # within them, with labels only # and #; with CRACK at its "
        "published coefficient # and #, with tuned n2n # and #.",
        [part for method in ("n2n_published", "undistilled", "crack_published", "n2n") for part in missed(method)],
    ),
    Claim(
        PAGE,
        "in the forces (# and # eV/Å) and, with atom energies as OC20's weigh them, in the energy (# and # eV). The same "
        "n2n at # reaches # eV and # eV/Å without atom energies.",
        [
            *(screened(f"{term}_published")[1] for term in ("crack", "n2n")),
            *(screened(f"{term}_published_atoms_oc20")[0] for term in ("crack", "n2n")),
            1000,
            *screened("n2n_raw@1000"),
        ],
    ),
    Claim(
        PAGE,
        "at its published coefficient from # to # eV, the force MAE from # to # eV/Å. With a hundred times the coefficient, "
        "n2n reaches # eV and # eV/Å without relations. From the teacher's first blocks, CRACK with n2n has # eV, n2n of "
        "l = 0 by itself # eV.",
        [
            *(screened(f"paper_{method}", *PAPER)[error] for error in (0, 1) for method in ("n2n", "crack_n2n")),
            *screened("paper_n2n@10000", *PAPER),
            *(screened(f"init_{method}", *PAPER)[0] for method in ("crack_n2n", "n2n_l0")),
        ],
    ),
    Claim(
        PAGE,
        "With one block and # seeds, relations lower the energy MAE at the published coefficients by # % [#, #], the force "
        "MAE by # % [#, #]; with the published atom energies beside them by # % [#, #] and # % [#, #].",
        [
            ONE_BLOCK["paper_crack_n2n"]["seeds"],
            *(
                100 * end
                for method in ("paper_crack_n2n", "paper_crack_n2n_atoms")
                for name in GAPS
                for end in ONE_BLOCK[method][f"less_{name}"]
            ),
        ],
    ),
    Claim(PAGE, "On the demo's data, in # steps with # seeds", [CONFIRMED["crack"]["steps"], CONFIRMED["crack"]["seeds"]]),
    Claim(
        PAGE,
        "CRACK has # eV and # eV/Å, node embeddings # eV and # eV/Å: CRACK's errors are # % [#, #] and # % [#, #] larger.",
        [*mean_errors(CONFIRMED["crack"]), *mean_errors(CONFIRMED["n2n"]), *larger(CONFIRMED["crack"])],
    ),
    Claim(
        PAGE,
        "with # eV and # eV/Å, # % [#, #] and # % [#, #] less",
        [*mean_errors(CONFIRMED["relations_unscaled"]), *smaller(CONFIRMED["relations_unscaled"])],
    ),
    Claim(
        PAGE,
        "In # steps CRACK's errors at the published coefficients are # % [#, #] and # % [#, #] smaller than those of n2n.",
        [CONFIRMED["crack_published"]["steps"], *smaller(CONFIRMED["crack_published"])],
    ),
    Claim(
        PAGE,
        "beside it lowers its errors in # steps by # % [#, #] and # % [#, #] (three seeds).",
        [CONFIRMED["crack_systems_100"]["steps"], *smaller(CONFIRMED["crack_systems_100"])],
    ),
    Claim(
        PAGE,
        "in # steps those of CRACK are # % [#, #] and # % [#, #] larger.",
        [CONFIRMED["crack_atoms_100"]["steps"], *larger(CONFIRMED["crack_atoms_100"])],
    ),
    Claim(
        PAGE,
        "In # steps those of unit length have errors # % [#, #] and # % [#, #] smaller than CRACK's.",
        [CONFIRMED["relations_cosine@10000"]["steps"], *smaller(CONFIRMED["relations_cosine@10000"])],
    ),
    Claim(
        PAGE,
        "In # steps with # seeds, its errors without relations and with `node_embeddings` 1000 are # % [#, #] and # % [#, "
        "#] smaller, with such relations beside these # % [#, #] and # % [#, #]: none is missed.",
        [
            *(TRIED["n2n_v2v_atoms_100", "full"][name] for name in ("steps", "seeds")),
            *(end for name in ("n2n_v2v_atoms_100", "oc20_lengths_n2n_1000") for end in smaller(TRIED[name, "full"])),
        ],
    ),
    Claim(
        PAGE,
        "The former's errors are in # steps # % [#, #] and # % [#, #] smaller (three seeds).",
        [CONFIRMED["crack_soft_targets@320"]["steps"], *smaller(CONFIRMED["crack_soft_targets@320"])],
    ),
    Claim(
        PAGE,
        "In # steps on #, #, # and # systems CRACK's energies are as good as those of n2n: their errors are # %, # %, # % "
        "and # % larger (one seed). In # steps n2n has left it behind, on each of them: # %, # %, # % and # % in the "
        "energies, # %, # %, # % and # % in the forces.",
        [
            OF_SIZES["crack", 300, "steps"]["steps"],
            *SIZES,
            *(larger(OF_SIZES["crack", size, "steps"])[0] for size in SIZES),
            OF_SIZES["crack", 300, "full"]["steps"],
            *(larger(OF_SIZES["crack", size, "full"])[part] for part in (0, 3) for size in SIZES),
        ],
    ),
    Claim(
        PAGE,
        "On # systems in # steps n2n reaches # eV and # eV/Å, CRACK # eV and # eV/Å, labels only # eV and # eV/Å.",
        [
            *(OF_SIZES["n2n", 300, "threefold"][name] for name in ("train_systems", "steps")),
            *(
                error
                for method in ("n2n", "crack", UNDISTILLED)
                for error in mean_errors(OF_SIZES[method, 300, "threefold"])
            ),
        ],
    ),
    Claim(
        PAGE,
        "that EquiformerV2 of one block has with CRACK # eV, with InfoNCE # eV and with n2n of l = 0 # eV.",
        [ONE_BLOCK[f"paper_{term}"]["energy_mae"][0] for term in ("crack", "infonce", "n2n_l0")],
    ),
    Claim(
        PAGE,
        "n2n of l = 0 has # eV and # eV/Å, CRACK # eV and # eV/Å, InfoNCE # eV and # eV/Å; from the teacher's first block "
        "# eV, # eV and # eV. n2n of all degrees has smaller errors of the forces, # and # eV/Å, and larger ones of the "
        "energies, # and # eV.",
        [
            *(TUNED_BLOCK[BEST_OF_PAPER["paper", term]][name][0] for term in SINGLE_OF_PAPER for name in GAPS.values()),
            *(TUNED_BLOCK[BEST_OF_PAPER["init", term]]["energy_mae"][0] for term in SINGLE_OF_PAPER),
            *(
                TUNED_BLOCK[BEST_OF_PAPER[start, "n2n"]][name][0]
                for name in ("forces_mae", "energy_mae")
                for start in STARTS
            ),
        ],
    ),
    Claim(
        PAGE,
        "n2n of l = 0 relations lower the errors by # % [#, #] and # % [#, #] from scratch, by # % [#, #] and # % [#, #] "
        "from the first block; beside that of all degrees by # % [#, #] and # % [#, #], and by # % [#, #] and # % [#, #].",
        [
            100 * end
            for method in (f"{start}_crack_n2n_{of}" for of in ("l0_tuned", "tuned") for start in STARTS)
            for name in GAPS
            for end in TUNED_BLOCK[method][f"less_{name}"]
        ],
    ),
    Claim(
        PAGE,
        "n2n has # eV and # eV/Å, CRACK # eV and # eV/Å;",
        [error for method in ("n2n_atoms_100", "crack_atoms_100") for error in screened(method, "unseen")],
    ),
    Claim(
        PAGE,
        "have # eV and # eV/Å, n2n # eV and # eV/Å, CRACK # eV and # eV/Å; with unit length and the same loss the best have "
        "# eV and # eV/Å.",
        [
            error
            for method in ("relations_unscaled@300", "n2n", "crack", "relations_cosine@10000")
            for error in screened(method, "contrast")
        ],
    ),
    Claim(
        PAGE,
        "nothing of that is left: # eV and # eV/Å with lengths, # eV and # eV/Å with CRACK, # eV and # eV/Å with neither.",
        [
            TRIED[method, "choice"][column][0]
            for method in ("oc20_lengths", OC20, "oc20_without_crack")
            for column in GAPS.values()
        ],
    ),
    Claim(
        PAGE,
        "has at best # eV and # eV/Å, and RKD, distances of the student's own embedding, # eV and # eV/Å: neither is ahead",
        [error for method in ("crack_soft_targets", "rkd") for error in best_screened(method, "contrast")],
    ),
    Claim(
        PAGE,
        "the errors of the teacher's labels, # eV and # eV/Å, to # eV and # eV/Å (relations), # eV and # eV/Å (n2n), # eV "
        "and # eV/Å (v2v) and # eV and # eV/Å (atom energies), all four together to # eV and # eV/Å. Without relations that "
        "is # eV and # eV/Å, without n2n # eV and # eV/Å.",
        [
            error
            for terms in (
                "",
                "_crack",
                "_n2n",
                "_v2v",
                "_atoms",
                "_crack_n2n_v2v_atoms",
                "_n2n_v2v_atoms",
                "_crack_v2v_atoms",
            )
            for error in screened(f"labelled{terms}", "generated")
        ],
    ),
    Claim(
        PAGE,
        "CRACK has at best # eV and # eV/Å: nothing gained. Three times the weight for adsorbates and a fifth for atoms "
        "below the surface bring it to # eV and # eV/Å, n2n at best to # eV and # eV/Å:",
        [error for method in ("crack_alike", "crack_adsorbate", "n2n_adsorbate") for error in best_screened(method, "hard")],
    ),
    Claim(
        PAGE,
        "with five seeds, it closes # % [#, #] of the gap in the energies and # % [#, #] in the forces on val_id, node "
        "embeddings, tuned there too, # % [#, #] and # % [#, #]; in the mean of the four splits # % [#, #] and # % [#, #], "
        "and # % [#, #] and # % [#, #]",
        [
            end
            for split in ("val_id", MEAN)
            for method in ("relations", "n2n")
            for interval in gap_intervals_of_sevennet("painn", method, split)
            for end in interval
        ],
    ),
    Claim(
        PAGE,
        "that part of the embedding's error, from # to #, as much as the part within systems, from # to #.",
        [missed(method)[part] for part in (0, 1) for method in ("undistilled", "crack")],
    ),
    Claim(
        PAGE,
        "at # times the step of that**: `node_embeddings` #, `vector_embeddings` #, `atom_energies` #, "
        "`embedding_response` # with `every: #` and `force_response` # with `every: #`, without `relations`. In # steps "
        "with five seeds it closes # % and # % of the gap on val_id, the recipe above # % and # %; its errors are "
        "# % [#, #] and # % [#, #] smaller, in as much time (# steps) # % [#, #] and # % [#, #]. Its terms and their "
        "weights were chosen with another seed among # recipes",
        [
            STEP_OF_TRIED[DERIVATIVES] / STEP_OF_TRIED[OC20],
            *amounts(DERIVATIVES),
            1140,
            *(100 * TRIED[method, "full"][f"gap_{name}"][0] for method in (DERIVATIVES, OC20) for name in GAPS),
            *(100 * end for name in GAPS for end in TRIED[DERIVATIVES, "full"][f"less_{name}"]),
            TRIED[DERIVATIVES, "full_time"]["steps"],
            *(100 * end for name in GAPS for end in TRIED[DERIVATIVES, "full_time"][f"less_{name}"]),
            len({method for method, _ in TRIED} - {UNDISTILLED, OC20}),
        ],
    ),
    Claim(
        PAGE,
        "or `embedding_response` # and `force_response` # with `every: #`: with # seeds the errors of the forces are # % "
        "[#, #] smaller than without, those of the energies # % [#, #], at # times the step where the recipe took #",
        [
            *(coefficients(OF_GEMNET, "gemnet_dT")[name] for name in ("embedding_response", "force_response")),
            5,
            TRIED_OF_GEMNET[OF_GEMNET, "full"]["seeds"],
            *(100 * end for name in ("forces", "energy") for end in TRIED_OF_GEMNET[OF_GEMNET, "full"][f"less_{name}"]),
            *(TRIED_OF_GEMNET[method, "full"]["step_cost"][0] for method in (OF_GEMNET, "crack_n2n_atoms")),
        ],
    ),
    Claim(
        PAGE,
        "Its step takes # undistilled ones, measured beside the recipe above with # (# in the table).",
        [STEP_OF_TRIED[DERIVATIVES], STEP_OF_TRIED[OC20], cost(OC20)],
    ),
    # docs/accuracy.md, in its order
    Claim(
        PAGE,
        "# training systems labelled with EMT, the demo's #M EquiformerV2 as teacher, a PaiNN of #M as student, # steps, "
        "**# seeds**, # systems in each validation split.",
        [
            MAIN.train_systems,
            DEMO["checkpoints"]["teacher"][2] / 1e6,
            DEMO["checkpoints"]["student"][2] / 1e6,
            steps("undistilled"),
            seeds("n2n"),
            ACCURACY["systems"]["val_id"],
        ],
    ),
    Claim(
        PAGE,
        "with another seed and # steps, from # to # candidates",
        [tuned_steps("painn"), min(CANDIDATES.values()), max(CANDIDATES.values())],
    ),
    Claim(
        PAGE,
        "**PaiNN**: `relations` #, `node_embeddings` #, `vector_embeddings` #, `atom_energies` #. # more time per step",
        [*coefficients(OC20).values(), cost(OC20) - 1],
    ),
    Claim(
        PAGE, "add `force_jacobian` #, which gives the demo's recipe.", [coefficients("recipe_atoms_100")["force_jacobian"]]
    ),
    Claim(PAGE, "how forces change, and # systems do not.", [MAIN.train_systems]),
    Claim(PAGE, "It takes a second backward pass, # times the time of a step", [cost("recipe")]),
    Claim(
        PAGE,
        "The demo's recipe closes # % of the energy gap and # % of the force gap on val_id, # % and # % on val_ood_both",
        [*gaps("recipe_atoms_100"), *gaps("recipe_atoms_100", split=OOD)],
    ),
    Claim(
        PAGE,
        "the difference, paired over the seeds, is # ± # eV and # ± # eV/Å on val_id, and # ± # eV and # ± # eV/Å in the "
        "mean of the four splits.",
        [*paired(OC20, "n2n"), *paired(OC20, "n2n", split=MEAN)],
    ),
    Claim(
        PAGE,
        "they raise the closed energy gap from # % to # % on val_id and from # % to # % on val_ood_both, and cost at "
        "most # % of the force gap.",
        [
            *(gaps(method, split=split)[0] for split in ("val_id", OOD) for method in ("recipe", "recipe_atoms_100")),
            max(gaps("recipe", split=split)[1] - gaps("recipe_atoms_100", split=split)[1] for split in ("val_id", OOD)),
        ],
    ),
    Claim(
        PAGE,
        "**GemNet-dT**: `relations` #, `node_embeddings` #, `atom_energies` #, at # times the time of a step. For better "
        "forces add `force_jacobian` #, at # times (",
        [
            *coefficients("crack_n2n_atoms", "gemnet_dT").values(),
            cost("crack_n2n_atoms", GEMNET),
            coefficients("hessian_100_without_vectors_atoms", "gemnet_dT")["force_jacobian"],
            cost("hessian_100_without_vectors_atoms", GEMNET),
        ],
    ),
    Claim(
        PAGE,
        "better than labels only by # %; over # seeds they are worse. InfoNCE's best candidate (#) closes # % and # % "
        "over # seeds",
        [
            100 * (1 - min(criteria("teacher_labels"))),
            seeds("teacher_labels"),
            *coefficients("infonce").values(),
            *gaps("infonce"),
            seeds("infonce"),
        ],
    ),
    Claim(
        PAGE,
        'that the undistilled one takes for its # steps. Where a step costs more by the column "step", the run has fewer '
        "steps, and its learning-rate schedule is shortened to them (`budget: time`; # seeds",
        [steps("undistilled"), seeds(OC20, IN_TIME)],
    ),
    Claim(
        PAGE,
        "It is better than n2n in both: the difference is # ± # eV and # ± # eV/Å on val_id, and # ± # eV and # ± # "
        "eV/Å in the mean of the four splits (paired over the seeds, 95 %).",
        [*paired(OC20, "n2n", IN_TIME), *paired(OC20, "n2n", IN_TIME, split=MEAN)],
    ),
    Claim(
        PAGE,
        "labels only, # steps for every number of systems; # systems with # seeds",
        [steps("undistilled"), MAIN.train_systems, seeds(OC20)],
    ),
    *(
        Claim(PAGE, f"| {name} | # / # | # / # | # / # | # / # |", [v for size in SIZES for v in errors(method, of(size))])
        for name, method in (("labels only", "undistilled"), ("distilled", OC20))
    ),
    Claim(
        PAGE, "| gap closed | # % / # % | # % / # % | # % / # % | # % / # % |", [v for n in SIZES for v in gaps(OC20, of(n))]
    ),
    Claim(PAGE, "| val_id, eV / eV/Å | # systems | # | # | # |", SIZES),
    Claim(PAGE, "distillation on # systems gives nearly the energy error of # systems", SIZES[1::2]),
    Claim(
        PAGE,
        "the gain of distillation shrinks from # to # eV/Å. At # systems it still closes # of the remaining gap.",
        [taken_off_forces(SIZES[0]), taken_off_forces(SIZES[-1]), SIZES[-1], gaps(OC20, of(SIZES[-1]))[1] / 100],
    ),
    Claim(
        PAGE,
        "By itself, CRACK closes # % of the energy gap on val_id, which is within the published range (25 to 45 %), and # % "
        "of the force gap",
        gaps("crack"),
    ),
    Claim(PAGE, "CRACK with n2n minus n2n is # ± # eV and # ± # eV/Å on val_id", paired("crack_n2n", "n2n")),
    Claim(
        PAGE,
        "The recipe without atom energies minus the same without `relations` is # ± # eV and # ± # eV/Å on val_id, # ± # eV "
        "and # ± # eV/Å in the mean of the four splits (# seeds, paired, 95 %).",
        [
            *paired("recipe", "recipe_without_crack"),
            *paired("recipe", "recipe_without_crack", split=MEAN),
            seeds("recipe_without_crack"),
        ],
    ),
    Claim(
        PAGE,
        "It costs # of an undistilled step",
        [cost("recipe") - cost("recipe_without_crack")],
    ),
    Claim(
        PAGE,
        "relative to the undistilled student, # steps, seed #; lower is better; n2n has #",
        [tuned_steps("painn"), TUNING["seed"], *criteria("n2n", 1000)],
    ),
    Claim(PAGE, "| CRACK only, coefficient 40 / 80 / 160 / 320 | # / **#** / # / # |", criteria("crack", 40, 80, 160, 320)),
    Claim(PAGE, "| temperature 0.05 (coefficients 27, 80) | # / # |", criteria("crack_sharp", 27, 80)),
    Claim(PAGE, "| temperature 0.5 (80, 240) | # / # |", criteria("crack_soft", 80, 240)),
    Claim(PAGE, "| a projection of two layers (80, 160) | # / # |", criteria("crack_mlp", 80, 160)),
    Claim(
        PAGE,
        "| two layers and temperature 0.5 (80, 240, 720) | # / **#** / # |",
        criteria("crack_soft_mlp", 80, 240, 720),
    ),
    Claim(PAGE, "| negatives of the same system only (80) | # |", criteria("crack_system", 80)),
    Claim(
        PAGE,
        "| look-alikes are no negatives: \\|t_e · t_f\\| above # (80) | # |",
        [look_alikes(), *criteria("crack_look_alikes", 80)],
    ),
    Claim(PAGE, "| the student's own graph for relations (80) | # |", criteria("crack_student_graph", 80)),
    Claim(PAGE, "| l=1 embeddings in the relations, too (80) | # |", criteria("crack_l1", 80)),
    Claim(PAGE, "| n2n with a projection of two layers (300, 1000) | # / # |", criteria("n2n_mlp", 300, 1000)),
    Claim(
        PAGE,
        "| n2n in the teacher's own units, as published (100, 300, 1000, 3000) | # / # / # / # |",
        criteria("n2n_raw", 100, 300, 1000, 3000),
    ),
    Claim(
        PAGE, "| CRACK 40, n2n 300 / with two layers | # / # |", criteria("crack_n2n", 40) + criteria("crack_n2n_mlp", 40)
    ),
    Claim(
        PAGE,
        "| CRACK 40, n2n 300, v2v 300, Hessian 30 / with two layers | # / # |",
        criteria("recipe", 40) + criteria("recipe_mlp", 40),
    ),
    Claim(
        PAGE,
        "| the same with atom energies 100 / 300 | **#** / # |",
        criteria("recipe_atoms_100", 40) + criteria("recipe_atoms_300", 40),
    ),
    Claim(PAGE, "In # steps, CRACK gains most", [tuned_steps("painn")]),
    Claim(
        PAGE,
        "With both, at coefficient #, it closes # % and # % on val_id over # seeds. The difference to CRACK with its "
        "defaults is # ± # eV and # ± # eV/Å, to n2n # ± # eV and # ± # eV/Å.",
        [
            *coefficients("crack_soft_mlp").values(),
            *gaps("crack_soft_mlp"),
            seeds("crack_soft_mlp"),
            *paired("crack_soft_mlp", "crack"),
            *paired("crack_soft_mlp", "n2n"),
        ],
    ),
    Claim(
        PAGE,
        "# steps, # of PaiNN's, **# seeds**. The coefficients of single terms were tuned for GemNet-dT, with # steps.",
        [
            steps("undistilled", GEMNET),
            steps("undistilled", GEMNET) / steps("undistilled"),
            seeds("n2n", GEMNET),
            tuned_steps("gemnet_dT"),
        ],
    ),
    Claim(
        PAGE,
        "CRACK minus n2n is # ± # eV/Å in the mean of the four splits. In the energy they are equal (# ± # eV)",
        [*paired("crack", "n2n", GEMNET, MEAN)[2:], *paired("crack", "n2n", GEMNET, MEAN)[:2]],
    ),
    Claim(
        PAGE,
        "Added to n2n, CRACK lowers the errors on val_id by another # ± # eV/Å and # ± # eV (# seeds, paired, 95 %).",
        [
            *(sign * value for sign, value in zip((-1, 1), paired("crack_n2n", "n2n", GEMNET)[2:])),
            *(sign * value for sign, value in zip((-1, 1), paired("crack_n2n", "n2n", GEMNET)[:2])),
            seeds("crack_n2n", GEMNET),
        ],
    ),
    Claim(
        PAGE,
        "the recipe closes # of both gaps on val_id, and # % and # % on val_ood_both.",
        [
            sum(gaps("hessian_100_without_vectors_atoms", GEMNET)) / 200,
            *gaps("hessian_100_without_vectors_atoms", GEMNET, OOD),
        ],
    ),
    Claim(PAGE, "PaiNN from the demo's eSCN, # steps, **one seed**", [steps("n2n", ESCN)]),
]
OF_ESCN = [method for group, method, split in FIGURES if group == ESCN and split == "val_id"]
# What is stated without a number.
STATEMENTS = [
    (
        RECIPES,
        "`atom_energies` bring most to the energies and `relations` to the forces, `vector_embeddings` little",
        all(
            largest_of_sevennet(SINGLE_TERMS, split, part) == method
            for split in ("val_id", MEAN)
            for part, method in enumerate(("atom_energies", "relations"))
        )
        and max(gap for split in ("val_id", MEAN) for gap in gap_of_sevennet("painn", "v2v", split)) < 10,
    ),
    (
        RECIPES,
        "as the teacher it lowers all of them, and is the best that was tried in the energies of val_id",
        all(min(gaps_of_potential("nequix", *recipe, split)) > 0 for recipe in INIT_RECIPES for split in ("val_id", MEAN))
        and all(
            gaps_of_potential("nequix", student, recipe)[0] > gaps_of_potential("nequix", student, "relations_atoms")[0]
            for student, recipe in INIT_RECIPES
        ),
    ),
    (
        PAGE,
        "With atom energies beside it, no other method that was tried there has smaller errors of the energies",
        all(
            largest_of_sevennet(("relations_atoms", "all", *SINGLE_TERMS), split, 0) == "relations_atoms"
            for split in ("val_id", MEAN)
        ),
    ),
    (
        PAGE,
        "on SevenNet's labels in the forces of val_id only",
        [less_than_n2n(split, name) > 0 for split in ("val_id", MEAN) for name in GAPS] == [False, True, False, False],
    ),
    (
        PAGE,
        "and, by a few percent, beside tuned node embeddings of an EquiformerV2 of one block that learns from a deeper one "
        "from scratch",
        all(TUNED_BLOCK["paper_crack_n2n_l0_tuned"][f"less_{name}"][1] > 0 for name in GAPS)
        and all(TUNED_BLOCK["paper_crack_n2n_tuned"][f"less_{name}"][0] > 0 for name in GAPS)
        and all(TUNED_BLOCK["init_crack_n2n_l0_tuned"][f"less_{name}"][0] < 0 for name in GAPS),
    ),
    (
        RECIPES,
        "The recipe as it stands lowers the errors there, too, on val_id; in the mean of the four splits all but those of "
        "the forces of GemNet-dT",
        all(gap > 0 for recipe in INIT_RECIPES for gap in gap_of_sevennet(*recipe))
        and [[gap > 0 for gap in gap_of_sevennet(*recipe, MEAN)] for recipe in INIT_RECIPES]
        == [[True, True], [True, False]],
    ),
    (
        RECIPES,
        "`embedding_response` and `force_response` in some steps (`every`) lower both errors of PaiNN further, at little "
        "cost, and those of GemNet-dT's forces",
        STEP_OF_TRIED[DERIVATIVES] < 1.1 * STEP_OF_TRIED[OC20]
        and all(TRIED[DERIVATIVES, "full"][f"less_{name}"][1] > 0 for name in GAPS)
        and TRIED_OF_GEMNET[OF_GEMNET, "full"]["less_forces"][1] > 0,
    ),
    (
        RECIPES,
        "On generated systems little of it is left",
        RESPONSES.errors()[1] > 0.95 * ANEW.errors()[1] and changed(RESPONSES, ANEW)[1] < 0 < changed(RESPONSES, ANEW)[2],
    ),
    (
        README,
        "the teacher's labels without any distillation term do nearly as well in the forces, and not in the energies",
        all(
            recipe[1] - plain[1] < 5 and recipe[0] - plain[0] > 10
            for split in ("val_id", MEAN)
            for plain, recipe in [(LONG_PLAIN.gaps(split), BEST.gaps(split))]
        ),
    ),
    (
        ENGINES_PAGE,
        "with n = 4 it heats beyond 5000 K in one of them, with n = 8 in both",
        [respa("distilled", every)["ended"] for every in (4, 8)] == [1, 2],
    ),
    (GENERATE, "Every line has five seeds.", {5} == SEEDS_OF_LINES),
    (
        PAGE,
        "In three times the steps, on rattled copies and with five seeds, nothing of the relations could be seen",
        RATTLED.row()["steps"] == 3 * SCREENED["generated", "painn", "labelled"]["steps"]
        and all(
            low < 0 < high
            for split in ("val_id", MEAN)
            for _, low, high in zip(*[iter(changed(WITHOUT_RELATIONS, RATTLED, split))] * 3)
        ),
    ),
    (
        GENERATE,
        "To the forces it is nothing that could be seen in three times the steps.",
        all(changed(LONGEST_PLAIN, LONGEST, split)[4] < 0 for split in ("val_id", MEAN)),
    ),
    (
        GENERATE,
        "the energies are better in trainings of every length, the forces in those of one and two times the steps",
        all(
            changed(plain, recipe, split)[low_end] > 0
            for plain, recipe, low_ends in (
                (PLAIN, SHORT, (1, 4)),
                (LONG_PLAIN, BEST, (1, 4)),
                (LONGEST_PLAIN, LONGEST, (1,)),
            )
            for split in ("val_id", MEAN)
            for low_end in low_ends
        ),
    ),
    (
        PAGE,
        "The recipe without `force_jacobian` then has smaller errors on val_id than the demo's recipe has without copies",
        all(own < before for own, before in zip(Line().errors(), errors("recipe_atoms_100"))),
    ),
    (
        PAGE,
        "Its intervals do not overlap with those of any single term, n2n and the Hessian included, in energy and forces on "
        "both splits.",
        all(
            low > high
            for split in ("val_id", OOD)
            for method in (*SINGLE, *ANCHORS)
            for low, high in zip(
                gaps("recipe_atoms_100", split=split, ends=True)[1::3], gaps(method, split=split, ends=True)[2::3]
            )
        ),
    ),
    (
        PAGE,
        "`node_embeddings` closes most. Next in the energy come `atom_energies` and `relations` with any anchor",
        sorted((*SINGLE, *ANCHORS), key=lambda method: -gaps(method)[0])[0] == "n2n"
        and set(sorted(SINGLE + ANCHORS, key=lambda method: -gaps(method)[0])[1:5]) == {"atom_energies", *ANCHORS},
    ),
    (
        PAGE,
        "Used as the only term, in the same time, they make the energy worse than labels only.",
        gaps("hessian", IN_TIME, ends=True)[2] < 0,
    ),
    (
        PAGE,
        "Its energies are better than those of the recipe with them and its forces are equally good.",
        gaps(OC20, IN_TIME)[0] > gaps("recipe_atoms_100", IN_TIME)[0] + 5
        and abs(gaps(OC20, IN_TIME)[1] - gaps("recipe_atoms_100", IN_TIME)[1]) < 3,
    ),
    (
        PAGE,
        "CRACK of a PaiNN wins nowhere against node embeddings with a tuned coefficient",
        CONFIRMED["crack"]["reference"] == CONFIRMED["relations_unscaled"]["reference"] == "n2n"
        and min(larger(CONFIRMED["crack"])) > 0
        and min(larger(CONFIRMED["crack_atoms_100"])) > 0,
    ),
    (PAGE, "It does not beat n2n here", all(crack < n2n for crack, n2n in zip(gaps("crack"), gaps("n2n")))),
    (
        PAGE,
        "The Hessian has the best forces of the single terms on val_id and is behind CRACK on val_ood_both",
        gaps("hessian", GEMNET)[1] > max(gaps(method, GEMNET)[1] for method in ("n2n", "infonce", *ANCHORS))
        and gaps("hessian", GEMNET, OOD)[1] < gaps("crack", GEMNET, OOD)[1],
    ),
    (
        PAGE,
        "both recipes close most; CRACK and n2n are equal in the energy on val_id.",
        {sorted(OF_ESCN, key=lambda name: errors(name, ESCN)[0])[rank] for rank in (1, 2)} == {OC20, "recipe_atoms_100"}
        and abs(gaps("crack", ESCN)[0] - gaps("n2n", ESCN)[0]) < 3,
    ),
    (TERMS, "a few % of a step", 0.02 < cost("crack_n2n") - cost("n2n") < 0.08),
    (
        OWN_DATA,
        "from the cache it takes as long as without a teacher, within the noise",
        is_within("cached_over_undistilled", 1),
    ),
]
# The tables of docs/accuracy.md: the group of each, whether the cost of a step is in it, and the method of each row.
TABLES: list[tuple[Run, bool, dict[str, str]]] = [
    (
        MAIN,
        True,
        {
            "labels only": "undistilled",
            "`node_embeddings` (n2n) 1000": "n2n",
            "`relations` (CRACK) 80, student as anchor": "crack",
            "`relations`, symmetric": "crack_symmetric",
            "`relations`, teacher as anchor": "crack_teacher_anchor",
            "`vector_embeddings` (v2v) 300": "v2v",
            "`node_contrast` (InfoNCE) 320": "infonce",
            "`atom_energies` 300": "atom_energies",
            "`teacher_energy` 16, `teacher_forces` 400": "teacher_labels",
            "`force_jacobian` (Hessian) 10": "hessian",
            "`relations` 40, `node_embeddings` 300": "crack_n2n",
            "and `vector_embeddings` 300": "crack_n2n_v2v",
            "and `force_jacobian` 30": "recipe",
            "**and `atom_energies` 100: the demo's**": "recipe_atoms_100",
            "**the demo's without `force_jacobian`: OC20's**": OC20,
            "the demo's without `relations` and `atom_energies`": "recipe_without_crack",
            "teacher": "teacher",
        },
    ),
    (
        IN_TIME,
        False,
        {
            "labels only, 1140 steps": "undistilled",
            "`node_embeddings` 1000, 1064 steps": "n2n",
            "`relations` 80, 1026 steps": "crack",
            "`force_jacobian` 10, 532 steps": "hessian",
            "the demo's, 494 steps": "recipe_atoms_100",
            "**the demo's without `force_jacobian`, 1007 steps**": OC20,
        },
    ),
    (
        GEMNET,
        True,
        {
            "labels only": "undistilled",
            "`node_embeddings` (n2n) 300": "n2n",
            "`relations` (CRACK) 250, student as anchor": "crack",
            "`relations`, symmetric": "crack_symmetric",
            "`relations`, teacher as anchor": "crack_teacher_anchor",
            "`node_contrast` (InfoNCE) 250": "infonce",
            "`atom_energies` 30": "atom_energies",
            "`teacher_energy` 4, `teacher_forces` 100": "teacher_labels",
            "`force_jacobian` (Hessian) 100": "hessian",
            "`relations` 40, `node_embeddings` 300": "crack_n2n",
            "**and `atom_energies` 100: OC20's**": "crack_n2n_atoms",
            "**and `force_jacobian` 100: the demo's**": "hessian_100_without_vectors_atoms",
            "teacher": "teacher",
        },
    ),
    (
        ESCN,
        False,
        {
            "labels only, five seeds": "undistilled",
            "`node_embeddings`": "n2n",
            "`relations`": "crack",
            "`relations`, `node_embeddings`, `vector_embeddings`": "crack_n2n_v2v",
            "**and `atom_energies` 100: OC20's**": OC20,
            "**and `force_jacobian` 30: the demo's**": "recipe_atoms_100",
            "teacher": "teacher",
        },
    ),
]


def row(label: str, method: str, group: Run, *, has_cost: bool) -> str:
    """A line of a table of docs/accuracy.md."""
    cells = [label]
    for split in ("val_id", OOD):
        energy, forces = errors(method, group, split)
        closed = " / ".join(filter(None, (gap(FIGURES[group, method, split], name) for name in GAPS)))
        cells += [f"{energy:.3f} / {forces:.4f}", closed]
    if has_cost:
        cells.append("" if method == TEACHER else f"{cost(method, group):.2f}")
    return f"| {' | '.join(cells)} |"


ROWS = [
    row(label, method, group, has_cost=has_cost) for group, has_cost, labels in TABLES for label, method in labels.items()
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{Path(claim.page).stem}: {claim.sentence[:40]}")
def test_a_sentence_has_the_figures_of_its_benchmark(claim):
    printed = find(claim).groups()
    assert len(printed) == len(claim.figures)
    wrong = [pair for pair in zip(printed, claim.figures) if not is_printed_as(pair[1], pair[0])]
    assert not wrong, f"printed, measured: {wrong}"


@pytest.mark.parametrize("page, sentence, holds", STATEMENTS, ids=lambda value: str(value)[:40])
def test_a_statement_holds(page, sentence, holds):
    assert sum(sentence in unit for unit in units(page)) == 1
    assert holds


def test_every_row_of_accuracy_is_that_of_its_method():
    for page, rows in ((PAGE, ROWS), (GENERATE, GENERATED_ROWS)):
        lines = units(page)
        assert [line for line in rows if lines.count(line) != rows.count(line)] == []


def test_the_labels_of_the_rows_name_coefficients_and_steps():
    for group, _, labels in TABLES:
        for label, method in labels.items():
            own = coefficients(method, group.student) if method != TEACHER else {}
            for term, coefficient in re.findall(r"`(\w+)`(?: \([^)]*\))? (\d+)", label):
                assert own[term] == float(coefficient), label
            for number in re.findall(r"(\d+) steps", label):
                assert int(number) == steps(method, group), label


def test_the_demos_table_closes_the_gaps_that_its_errors_say():
    """Each gap lies where its three errors can, which are rounded to 0.001."""
    cells = {unit.split(" | ")[0].strip("| "): unit.strip("| ").split(" | ")[1:] for unit in units(README) if unit[0] == "|"}
    rows = ("PaiNN, labels only", "PaiNN, distilled", "EquiformerV2 teacher", "gap closed")
    checked = 0
    for undistilled, distilled, teacher, closed in zip(*(" / ".join(cells[row]).split(" / ") for row in rows)):
        corners = itertools.product(
            *((float(error) - 0.0005, float(error) + 0.0005) for error in (undistilled, distilled, teacher))
        )
        possible = [100 * (u - d) / (u - t) for u, d, t in corners]
        assert min(possible) - 0.5 <= float(closed.strip("%")) <= max(possible) + 0.5, (
            undistilled,
            distilled,
            teacher,
        )
        checked += 1
    assert checked == 8  # two errors on four splits


GENERATED = "docs/internet-scale.md"  # test_benchmark_pages compares it whole
PAGES = [README, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
PAGES.remove(GENERATED)
BENCHMARKED = re.compile(r"\]\((?:docs/)?(?:benchmarks/\w+|accuracy)\.md")
# What stands beside measured figures and is none.
NO_FIGURES = {
    PAGE: ["In brackets 95 % intervals", "of two blocks from one of six"],
}


@pytest.mark.parametrize("page", PAGES)
def test_no_figure_of_a_benchmark_is_unlisted(page):
    """In the sentences that link to one, and on all of docs/accuracy.md."""
    sentences = [claim.sentence for claim in CLAIMS if claim.page == page] + NO_FIGURES.get(page, [])
    sentences += [sentence for its_page, sentence, _ in STATEMENTS if its_page == page] + (ROWS if page == PAGE else [])
    relevant = [unit for unit in units(page) if page == PAGE or BENCHMARKED.search(unit)]
    unlisted = {unit: numbers for unit in relevant if (numbers := uncovered(unit, sentences))}
    assert unlisted == {}


def test_a_changed_figure_and_an_unlisted_one_are_seen():
    assert is_printed_as(0.0345, "0.0345") and is_printed_as(0.03454, "0.0345") and not is_printed_as(0.0346, "0.0345")
    assert is_printed_as(5901 / 879, "6.7") and is_printed_as(-0.0204, "-0.020") and not is_printed_as(0.020, "-0.020")
    assert is_printed_as(2.2, "twice") and not is_printed_as(3, "twice") and is_printed_as(32000, "32 000")
    unit = "h512 of 31M is 4.3 [4.0, 4.9] times as slow ([page](x_12.md)), `at 7`, twice."
    assert uncovered(unit, []) == ["4.3", "4.0", "4.9", "twice"]
    assert uncovered(unit, ["is # [#, #] times as slow"]) == ["twice"]
