"""Catalogue of the articles of kexue.fm, one record each; the tables of README and docs are generated from it."""

from __future__ import annotations

import datetime
import difflib
import re
from dataclasses import dataclass
from typing import Literal

from kexue.errors import UnknownArticleError

Status = Literal["planned", "working"]


@dataclass(frozen=True)
class Method:
    """One article, the code that implements it, its experiment and its page.

    Attributes:
        slug: short name; also the name of the experiment and of the page `docs/methods/<slug>.md`.
        title: subject of the article, in English.
        title_zh: title of the article.
        archive: number of the article, `https://kexue.fm/archives/<archive>`.
        also: numbers of further articles on the method.
        date: day of publication of `archive`.
        objects: public entry points as ``"module:name"``.
        experiment: name for `kexue reproduce`.
        page: path of the derivation, relative to the docs folder.
        status: ``"working"`` once code, test, experiment and page exist; ``"planned"`` before.
    """

    slug: str
    title: str
    title_zh: str
    archive: int
    also: tuple[int, ...]
    date: datetime.date
    objects: tuple[str, ...]
    experiment: str
    page: str
    status: Status

    @property
    def url(self) -> str:
        """Address of the article."""
        return f"https://kexue.fm/archives/{self.archive}"


def _method(
    slug: str,
    title: str,
    title_zh: str,
    archive: int | tuple[int, ...],
    date: str,
    objects: str,
    status: Status = "planned",
) -> Method:
    """Build a record; `objects` has the form ``"room: name name; room: name"``."""
    first, *also = (archive,) if isinstance(archive, int) else archive
    names: list[str] = []
    for group in objects.split(";"):
        room, _, members = group.partition(":")
        names += [f"kexue.{room.strip()}:{name}" for name in members.split()]
    day = datetime.date.fromisoformat(date)
    return Method(slug, title, title_zh, first, tuple(also), day, tuple(names), slug, f"methods/{slug}.md", status)


# fmt: off
METHODS: tuple[Method, ...] = (
    _method("whitening", "Whitening sentence vectors, and a fair comparison of unsupervised similarity",
            "无监督语义相似度哪家强?我们做了个比较全面的评测", 8321, "2021-04-11",
            "similarity: Whitening evaluate_pairs spearman", "working"),
    _method("whitening-hyperparameters", "Whitening with two hyper-parameters: a setting for every encoder",
            "当BERT-whitening引入超参数:总有一款适合你", 9079, "2022-05-18",
            "similarity: Whitening tune_whitening", "working"),
    _method("wmd-wrd", "From EMD and WMD to WRD: similarity of sequences of word vectors",
            "从EMD、WMD到WRD:文本向量序列的相似度计算", 7388, "2020-05-13",
            "similarity: emd word_movers_distance word_rotators_distance TransportIndex", "working"),
    _method("geodesic", "From local to global: geodesic distance for semantic similarity",
            "从局部到全局:语义相似度的测地线距离", 9368, "2022-12-07",
            "similarity: knn_graph geodesic_distances GeodesicIndex GeodesicSummarizer", "working"),
    _method("hubness", "The hubness phenomenon of high dimensions",
            "“维度灾难”之Hubness现象浅析", 9147, "2022-06-28",
            "similarity: k_occurrence hubness_report HubnessReducer HubSampler", "working"),
    _method("rotation", "The orthogonal matrix that turns one unit vector into another",
            "从一个单位向量变换到另一个单位向量的正交矩阵", 8453, "2021-06-05",
            "similarity: rotation_between RotationOperator", "working"),
    _method("am-softmax", "From the triangle inequality to margin softmax",
            "从三角不等式到Margin Softmax", 8656, "2021-09-01",
            "losses: am_softmax_loss AMSoftmaxLoss margin_loss", "working"),
    _method("flatnce", "FlatNCE: floating-point error as the cause of weak small-batch contrast",
            "FlatNCE:小批次对比学习效果差的原因竟是浮点误差?", 8586, "2021-07-26",
            "losses: flat_nce FlatNCELoss info_nce", "working"),
    _method("roformer-sim", "RoFormer-Sim: one model that retrieves and generates similar sentences",
            "SimBERTv2来了!融合检索和生成的RoFormer-Sim模型", 8454, "2021-06-11",
            "text: RoFormerSim train_sentences", "working"),
    _method("supervised-similarity", "Open labelled data to strengthen RoFormer-Sim",
            "用开源的人工标注数据来增强RoFormer-Sim", (8541, 8847), "2021-07-19",
            "losses: CoSENTLoss MultiTaskPairLoss similarity_distillation_loss", "working"),
    _method("zlpr", "Softmax cross-entropy for multi-label classification, and its soft-label form",
            "将“Softmax+交叉熵”推广到多标签分类问题", (7359, 9064), "2020-04-25",
            "losses: zlpr_loss ZLPRLoss zlpr_predict", "working"),
    _method("nmway", "An unsuccessful attempt: multi-label cross-entropy for n m-way decisions",
            "不成功的尝试:将多标签交叉熵推广到“n个m分类”上去", 9158, "2022-07-15",
            "losses: nmway_loss NMWayLoss", "working"),
    _method("tailr", "A plain remedy for the over-confidence of cross-entropy",
            "缓解交叉熵过度自信的一个简明方案", 9526, "2023-03-14",
            "losses: tailr_loss TaiLrLoss", "working"),
    _method("perturb-max", "Discrete distributions built by reparameterisation",
            "从重参数的角度看离散概率分布的构建", 9085, "2022-05-25",
            "nn: perturb_max PerturbMax", "working"),
    _method("urpe", "A defect of relative-position Transformers and its remedy",
            "相对位置编码Transformer的一个理论缺陷与对策", 9105, "2022-06-07",
            "nn: urpe_attention ToeplitzGate position_probe", "working"),
    _method("lst", "Ladder side-tuning of a pretrained model",
            "Ladder Side-Tuning:预训练模型的“过墙梯”", 9138, "2022-06-20",
            "nn: LadderSideNetwork", "working"),
    _method("derived-optim", "Six derived optimizers",
            "6个派生优化器的简单介绍及其实现", 7094, "2019-11-25",
            "optim: DecoupledWeightDecay LayerAdaptation PiecewiseLinear GradientAccumulation extend", "working"),
    _method("lookahead-lazy", "Two optimizers: Lookahead and Lazy",
            "Keras实现两个优化器:Lookahead和LazyOptimizer", 6869, "2019-07-30",
            "optim: Lookahead Lazy", "working"),
    _method("adafactor", "The AdaFactor optimizer",
            "AdaFactor优化器浅析", 7302, "2020-03-23", "optim: Adafactor", "working"),
    _method("adax", "The AdaX optimizer",
            "AdaX优化器浅析", 7387, "2020-05-11", "optim: AdaX", "working"),
    _method("lipschitz", "Lipschitz constraints: generalisation and generative models",
            "深度学习中的Lipschitz约束:泛化与生成模型", 6051, "2018-10-07",
            "nn: spectral_norm_value apply_spectral_normalization gradient_penalty", "working"),
    _method("simvq", "Two tricks for VQ: a linear map on the codebook, and rotation",
            "VQ的又一技巧:给编码表加一个线性变换", (10519, 10489), "2024-11-06",
            "nn: VectorQuantizer rotate_to", "working"),
    _method("retry", "More elegant retry code in Python",
            "旁门左道之如何让Python的重试代码更加优雅", 9938, "2024-01-14",
            "retry: Retry AsyncRetry retry", "working"),
    _method("ddim", "Diffusion models (4): DDIM as DDPM seen from higher up",
            "生成扩散模型漫谈(四):DDIM = 高观点DDPM", 9181, "2022-07-27",
            "generative.diffusion: ddim_step Diffusion", "working"),
    _method("sde", "Diffusion models (5): the general framework, SDE",
            "生成扩散模型漫谈(五):一般框架之SDE篇", 9209, "2022-08-03",
            "generative.diffusion: VP VE SubVP ReverseSDE", "working"),
    _method("probability-flow-ode", "Diffusion models (6): the general framework, ODE",
            "生成扩散模型漫谈(六):一般框架之ODE篇", 9228, "2022-08-08",
            "generative.diffusion: flow_ode odeint log_likelihood", "working"),
    _method("guidance", "Diffusion models (9): conditional control of the results",
            "生成扩散模型漫谈(九):条件控制生成结果", 9257, "2022-08-30",
            "generative.diffusion: ClassifierGuidance SimilarityGuidance ClassifierFreeGuidance", "working"),
    _method("ode-construction", "Diffusion models (15): general steps to construct an ODE",
            "生成扩散模型漫谈(十五):构建ODE的一般步骤(中)", 9379, "2022-12-22",
            "generative.diffusion: LinearPath TrajectoryPath FlowMatching", "working"),
    _method("ign", "Idempotent generative networks: discriminator and generator in one",
            "幂等生成网络IGN:试图将判别和生成合二为一的GAN", 9969, "2024-01-31", "generative: IGN",
            "working"),
    _method("vae", "The variational auto-encoder, first look",
            "变分自编码器(一):原来是这么一回事", 5253, "2018-03-18", "generative: VAE VQVAE",
            "working"),
    _method("realnvp-glow", "RealNVP and Glow: flow models continued",
            "细水长flow之RealNVP与Glow:流模型的传承与升华", 5807, "2018-08-26",
            "generative: Flow nice realnvp glow", "working"),
    _method("energy-gan", "GANs from the energy view (3): generative model = energy model",
            "能量视角下的GAN模型(三):生成模型=能量模型", 6612, "2019-05-10",
            "generative: EnergyModel langevin GAN", "working"),
    _method("univae", "UniVAE: one Transformer as a multi-scale VAE",
            "UniVAE:基于Transformer的单模型、多尺度的VAE模型", 8475, "2021-06-29",
            "generative: UniVAE univae_mask", "working"),
    _method("clue", "Baselines for the CLUE benchmark",
            "bert4keras在手,baseline我有:CLUE基准代码", 8739, "2021-10-31",
            "clue: get_task train_task check_submission",
            "working"),
    _method("dgcnn-ie", "Light information extraction with DGCNN and a probabilistic graph",
            "基于DGCNN和概率图的轻量级信息抽取模型", 6671, "2019-06-03",
            "extract: DGCNNExtractor triple_f1", "working"),
    _method("search-sampling", "Text by search (1): from generation to sampling",
            "【搜出来的文本】⋅(一)从文本生成到搜索采样", 8062, "2021-01-07",
            "sampling: metropolis_hastings gibbs anneal", "working"),
    _method("bigshuffle", "Shuffling files of hundreds of gigabytes in little memory",
            "有限内存下全局打乱几百G文件(Python)", 8662, "2021-09-08",
            "corpus: shuffle_files plan_shuffle", "working"),
    _method("algebra-symmetry", "Algebraic equations seen through symmetry",
            "从对称角度看代数方程", 1336, "2011-04-29",
            "algebra: solve solve_cubic express_symmetric", "working"),
    _method("projector-bridge", "A voice assistant that controls a projector",
            "智能家居之小爱同学控制极米投影仪的简单方案", 9365, "2022-12-05",
            "home: Bridge XgimiUdp ir_plan", "working"),
)
# fmt: on

_BY_NAME = {method.slug: method for method in METHODS} | {
    str(number): method for method in METHODS for number in (method.archive, *method.also)
}
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:kexue\.fm|spaces\.ac\.cn)/archives/([0-9]+)(?:[/?#].*)?", re.IGNORECASE
)


def get_method(name: str | int) -> Method:
    """Return the record of one article, by slug, by number of its archive (also of `also`), or by address.

    Raises:
        UnknownArticleError: a KeyError; the message names the three nearest slugs or numbers.

    >>> get_method(8453).slug, get_method("https://kexue.fm/archives/9064").slug
    ('rotation', 'zlpr')
    """
    text = str(name).strip()
    address = _ADDRESS.fullmatch(text)
    key = (address[1] if address else text).lower().replace("_", "-")
    try:
        return _BY_NAME[key]
    except KeyError:
        near = difflib.get_close_matches(key, _BY_NAME, n=3, cutoff=0)
        raise UnknownArticleError(
            f"no article {text!r} in the catalogue; did you mean {' or '.join(near)}?",
            remedy="`kexue reproduce --list` shows names and numbers.",
        ) from None


def list_methods(*, status: Status | None = None) -> list[Method]:
    """Return all records in the order of the catalogue, or those of one status."""
    return [method for method in METHODS if status is None or method.status == status]
