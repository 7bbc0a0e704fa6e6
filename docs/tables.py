# ruff: noqa: E501 - lines of Chinese
"""Write the tables of the catalogue and the recorded results into the docs; `--check` only names stale files.

A table is the text between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import functools
import json
import re
import sys
from pathlib import Path

from kexue.experiments import Figure, Report
from kexue.experiments.registry import TABLES, fill_effect, summary
from kexue.methods import METHODS, Method

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FILES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    DOCS / "methods" / "index.md",
    DOCS / "results" / "index.md",
    *(DOCS / m.page for m in METHODS if m.status == "working"),
    *(DOCS / table.page for table in TABLES),
]
RECORDED = ROOT / "src" / "kexue" / "experiments" / "recorded.json"
_EFFECT_ZH = {
    "whitening": "Spearman:人造数据 {made_up_raw} → {made_up_whitened}; 手写数字 {digits_raw} → {digits_whitened}; "
    "MiniLM 在 STS-B 上 {MiniLM_stsb_en_raw} → {MiniLM_stsb_en_whitened}",
    "whitening-hyperparameters": "手写数字保留四分之一维度的 Spearman {digits_raw} → {digits_beta0_gamma0_k16}; "
    "MiniLM 在 STS-B 上调参 {stsb_en_test_raw} → {stsb_en_test_tuned}",
    "wmd-wrd": "STS-B 上 WRD 比 WMD 高 {stsb_en_WRD_over_WMD}; 比均值向量的余弦高 {stsb_en_WRD_over_cosine_of_means}; "
    "需精确求解 {search_solved}",
    "geodesic": "较远文档的 Spearman {docstrings_spearman_straight} → {docstrings_spearman_geodesic},提升 {docstrings_gain},很小; "
    "卷曲曲面上 {swiss_roll_spearman_straight} → {swiss_roll_spearman_geodesic}",
    "hubness": "10-近邻出现次数的偏度:3 维 {skewness_gaussian_3}; 100 维 {skewness_gaussian_100}; 最热门五分之一的占比 {top20_share}; "
    "GAN 的 precision:随机隐变量 {gan_precision_random},hub {gan_precision_hubs},截断 {gan_precision_truncated}",
    "rotation": "float32 下 b 接近 -a 时的正交误差:照原式 {article_form_error_float32}; 归一化后 {normalised_form_error_float32}",
    "am-softmax": "手写数字 mAP {map_digits_0} → {map_digits_0.35}; 未见过的类别 {map_unseen_0} → {map_unseen_0.35}",
    "flatnce": "批大小 3 的 mAP {map_cross_entropy_3} → {map_flat_3}; 批大小 64 {map_cross_entropy_64} → {map_flat_64}",
    "roformer-sim": "平均精度:未训练 {map_untrained},训练后 {map_clean},加噪声 {map_noisy},再蒸馏 {map_distilled}; "
    "写出的句子中同义的占 {valid_clean}",
    "supervised-similarity": "人造句对,10% 标签有错:平方误差 {planted_wrong_squared},分类 {planted_wrong_classification},"
    "CoSENT {planted_wrong_cosent},scale 取 5 时 {planted_wrong_cosent_5}; ATEC {atec_untrained}:平方误差 {atec_squared},"
    "分类 {atec_classification},CoSENT {atec_cosent},scale 取 5 时 {atec_cosent_5}",
    "zlpr": "6 轮后的 micro-F1 {f1_early_bce} → {f1_early_zlpr}; 训练结束后比最优权重高 {f1_late_zlpr_minus_bce_best_weight}",
    "nmway": "各数字的平均召回 {accuracy_cross_entropy} → {accuracy_pairwise}; "
    "一类占 90% 时 {balanced_accuracy_common_cross_entropy} → {balanced_accuracy_common_pairwise}",
    "tailr": "30% 错误标签下的准确率 {accuracy_noise_0.3_gamma_0} → {accuracy_noise_0.3_gamma_0.5}; "
    "干净标签下的校准误差 {ece_noise_0_gamma_0} → {ece_noise_0_gamma_0.1}",
    "search-sampling": "与枚举所得分布的最大总变差 {largest_variation}; 要求四个词:模型自己写对的占 {rejection_4_words},链接受的移动占 {acceptance_4_words}; "
    "困惑度:采样 {perplexity_samples},束搜索 {perplexity_beams}",
    "perturb-max": "积分与频率的最大差 {gumbel_frequency_gap}; 正态噪声与 softmax 的准确率之差 {accuracy_difference}",
    "urpe": "位置判断正确的比例:没有 Toeplitz 因子 {accuracy_bias}; 有 {accuracy_urpe}",
    "lst": "反向传播需保留 {saved_share_ladder}; 手写数字准确率:全量 {digits_accuracy_full},梯子 {digits_accuracy_ladder}; "
    "TNEWS:全量 {tnews_accuracy_full},梯子 {tnews_accuracy_ladder}",
    "derived-optim": "与参照优化器的差最多 {gap_lamb}; 不按样本数加权则差 {gap_mean_of_means}",
    "lookahead-lazy": "带噪二次函数的损失 {noisy_loss_sgd} → {noisy_loss_lookahead_slow}; 惰性更新带来的准确率变化 {gain_masked}",
    "adafactor": "BERT-base 的状态 {state_bert_base_adam} → {state_bert_base_adafactor}; 验证损失 {poems_loss_adam} → {poems_loss_adafactor}",
    "adax": "准确率相对 Adam 的变化 {digits_gain}",
    "lipschitz": "受攻击时的错误率 {none_attacked_error} → {spectral_attacked_error}(无攻击 {none_clean_error} → {spectral_clean_error}); "
    "比权重衰减低 {spectral_gain_over_frobenius}; 判别器的上界 {normalised_critic_bound}; "
    "手写数字的 WGAN 达到距离 5:谱归一化 {digits_normalised_steps},梯度惩罚 {digits_penalty_10_steps}",
    "simvq": "聚类向量上用到的编码 {clusters_usage_plain} → {clusters_usage_linear}; "
    "旋转技巧下数字的误差 {digits_mse_plain_straight_through} → {digits_mse_plain_rotation}",
    "vae": "先验采样的 Fréchet 距离:无 KL {fd_beta_0},有 KL {fd_beta_1},训练集图像 {fd_train_test}; "
    "测试集的下界 {elbo_beta_1}; 按类别采样的正确率 {cvae_agreement}",
    "ign": "加噪数字的误差 {noisy_error} → {noisy_projected_ign},普通自编码器 {noisy_projected_autoencoder}; 幂等误差 {idempotence_ign}; 样本类别的熵 {entropy_ign},"
    "同样大小的 GAN {entropy_gan}; Fréchet 距离 {fd_ign},GAN {fd_gan},测试图像 {fd_reference_test}",
    "energy-gan": "与八个高斯的总变差 {ring_tv_sum},不用缓冲区 {ring_tv_fresh}; 手写数字的 Fréchet 距离 {fd},温度为 1 时 {fd_warm},像素的高斯分布 "
    "{fd_reference_gaussian}; 镜像数字能量更高的比例 {auc_mirrored}; 发散的训练:平方和 {diverged_sum},平方差 {diverged_difference}",
    "clue": "成语填空的正确率:逐空取最大 {argmax_1}、{argmax_1.5}、{argmax_2},指派 {assigned_1}、{assigned_1.5}、{assigned_2}; "
    "1500 字的文章中保留的答案:截断 {kept_truncated},滑动窗口 {kept_windows}; 人造问题的准确率:两个 softmax {em_heads},联合 softmax {em_joint}; "
    "句对的准确率:segment 0/0 {zeros},0/1 {ones}; CLUENER 实体:短训练之后 {cluener_macro_f1},查表 {cluener_plain}",
    "univae": "语料中的新短句按字重构 {corpus_tokens},KL {corpus_kl}; 小语法的新句子 {grammar_tokens},活跃维数 {grammar_active}; 换掉早层隐变量后主题保留 {topic_kept_early},换掉末层 {topic_kept_last}",
    "ode-construction": "八个高斯上样本的切片 Wasserstein 距离:正态先验 {swd_normal},均匀先验 {swd_uniform},泊松流 {swd_poisson},"
    "新数据 {swd_data}; 轨迹的弯曲:{bend_normal},批内最优配对 {bend_coupled},重流之后 {bend_reflow}",
    "realnvp-glow": "手写数字的 bits/dim:高斯 {bits_gaussian},加性耦合 {bits_additive},仿射耦合 {bits_affine},Glow {bits_glow}; "
    "Glow 样本的 Fréchet 距离 {fd_glow_1},温度 0.8 时 {fd_glow_0.8},测试图像 {fd_reference_test}",
    "ddim": "手写数字 10 步采样的 Fréchet 距离:不加噪声 {fd_free_eta0_10},DDPM 的噪声 {fd_free_eta1_10}; 1000 步 {fd_free_eta0_1000},"
    "{fd_free_eta1_1000}; DPM-Solver++ 10 步 {fd_free_dpmpp_10},DDIM 50 步 {fd_free_ddim_50}; 测试图像 {fd_reference_test}; "
    "往返误差 {error_fixed_point},朴素法 {error_naive}",
    "guidance": "与所求类别一致的比例:强度 1 时 {agreement_1},2 时 {agreement_2}; 召回率 {recall_1},强度 2 时 {recall_2},8 时 {recall_8}; "
    "Fréchet 距离 {fd_1},1.5 时 {fd_1.5},8 时 {fd_8},测试图像 {fd_reference_test}; 用分类器引导:一致的比例 {agreement_0} → {agreement_noisy_5}",
    "sde": "与环形数据的切片 Wasserstein 距离:20 步 {swd_20},100 步 {swd_100},1000 步 {swd_1000},两组数据之间 {swd_floor}; "
    "手写数字 200 次调用的 Fréchet 距离:只预测 {fd_predictor_200},加校正 {fd_corrected_200}",
    "probability-flow-ode": "环形数据的平均对数似然 {log_likelihood},真值 {truth}; 模型密度的积分 {mass}; "
    "10 次调用的误差:Euler {error_euler_10},DDIM {error_ddim_10},DPM-Solver++ 2M {error_dpmpp_2m_10}; 编码再解码的误差 {decoded_1e-05}",
    "dgcnn-ie": "模板句子的 F1 {f1_all},每字一个标签最多 {tags_all}; 尾的阈值为 0.4 时召回 {recall_0.4},0.5 时 {recall_0.5}; 乘法次数 {work_ratio_bert_base}",
    "retry": "失败率 30% 时重试三次的成功率 {saved_by_three_tries}",
    "bigshuffle": "打乱 {file} 的文件,内存峰值 {peak_memory}; 被杀后出错 {wrong_after_a_kill} 次",
    "algebra-symmetry": "最大后向误差 {backward_error_ours_degree_4}; 难题中最差的根 {hard_cases_worst_numpy} → {hard_cases_worst_ours}",
    "projector-bridge": "丢包 30% 时关机成功 {off_with_repeats}; 名单之外的动作 {actions_outside_the_list}",
}  # the English ones are in the files of the experiments
_VERDICT_ZH = {"reproduced": "复现", "partly": "部分复现", "not reproduced": "未复现"}


@functools.cache
def load_results() -> dict[str, Report]:
    """The recorded reports by slug: those of the articles, then those of tables."""
    slugs = [one.slug for one in (*METHODS, *TABLES)]
    return {slug: Report.load(path) for slug in slugs if (path := DOCS / "results" / slug / "report.json").is_file()}


def methods_table(prefix: str, *, chinese: bool = False) -> str:
    """One row per article; `prefix` is the path from the file to the docs folder."""
    recorded = load_results()
    head = (
        ["方法", "文章", "入口", "结论", "效果大小"] if chinese else ["method", "article", "import", "verdict", "size"]
    )
    rows = []
    for m in METHODS:
        working = m.status == "working"
        name = f"[`{m.slug}`]({prefix}{m.page})" if working else f"`{m.slug}`"
        numbers = ", ".join(f"[{n}](https://kexue.fm/archives/{n})" for n in (m.archive, *m.also))
        title = m.title_zh if chinese else m.title
        rows.append([name, f"{title} ({numbers})", _entries(m), *_verdict(recorded.get(m.slug), chinese)])
    return _markdown(head, rows)


def _entries(m: Method) -> str:
    return ", ".join(f"`{entry.replace(':', '.')}`" for entry in m.objects)


def _verdict(report: Report | None, chinese: bool) -> tuple[str, str]:
    """The verdict with the number of reproduced claims, and the size of the effect."""
    if report is None:
        return "计划中" if chinese else "planned", ""
    row = summary(report)
    if chinese:
        return f"{_VERDICT_ZH[report.verdict]} ({row['reproduced']}/{row['claims']})", fill_effect(
            _EFFECT_ZH[report.slug], report
        )
    return f"{report.verdict} ({row['reproduced']} of {row['claims']})", report.effect


def results_table() -> str:
    """Every recorded claim with its figures."""
    rows = []
    for slug, report in load_results().items():
        for claim in report.claims:
            figures = "; ".join(f"{name} = {_format_figure(report.figures[name])}" for name in claim.figures)
            rows.append([f"[{slug}]({slug}/figure.png)", claim.text, claim.verdict, figures])
    return _markdown(["experiment", "claim", "verdict", "figures"], rows)


def _describe(report: Report) -> str:
    """The line with the recorded verdict on the page of a method."""
    verdict, effect = _verdict(report, chinese=False)
    return f"Recorded on {report.date}: **{verdict} claims**. Size of the effect: {effect}."


def _rows_table(report: Report) -> str:
    """The table of a report that has one."""
    return _markdown(list(report.rows[0]), [list(row.values()) for row in report.rows])


def _format_figure(figure: Figure) -> str:
    return f"{figure}{'' if figure.n is None else f' (n = {figure.n:,})'}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def renew_tables(path: Path) -> str:
    """The text of a file with new tables."""
    tables = {
        "methods": lambda: methods_table("docs/"),
        "methods-zh": lambda: methods_table("docs/", chinese=True),
        "methods-docs": lambda: methods_table("../"),
        "results": results_table,
    }
    tables |= {f"recorded-{slug}": functools.partial(_describe, report) for slug, report in load_results().items()}
    tables |= {slug: functools.partial(_rows_table, report) for slug, report in load_results().items() if report.rows}
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{tables[match[2]]()}\n\n{match[3]}", text)


def format_summaries() -> str:
    """The rows of `kexue reproduce --list`, as the JSON file in the package."""
    results = load_results()
    summaries = {m.slug: summary(results[m.slug]) for m in METHODS if m.slug in results}
    return json.dumps(summaries, ensure_ascii=False, indent=1) + "\n"


def main() -> int:
    """Write new tables, or with `--check` name the stale files and return 1 if there are any."""
    fresh = {path: renew_tables(path) for path in FILES} | {RECORDED: format_summaries()}
    stale = [path for path, text in fresh.items() if not path.is_file() or text != path.read_text(encoding="utf-8")]
    for path in stale:
        if "--check" in sys.argv:
            print(f"{path.relative_to(ROOT)}: stale; run `make tables`")
        else:
            path.write_text(fresh[path], encoding="utf-8")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
