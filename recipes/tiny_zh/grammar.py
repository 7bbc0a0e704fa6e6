# ruff: noqa: E501
# fmt: off
"""A small grammar of everyday Chinese questions and statements: sentences in groups that mean the same.

The words and the forms were written for this recipe; nothing was taken from a data set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

WORDS = {
    # verbs with the things they are done to
    "account_thing": "密码 支付密码 登录密码 手机号 手机号码 邮箱 头像 昵称 账号 账户 实名认证 身份信息 收货地址 银行卡 默认银行卡 验证方式 绑定的手机 个人资料 会员 自动续费 自动扣款 指纹支付 刷脸支付 亲情卡",
    "account_verb": "修改 更换 绑定 解绑 取消 开通 关闭 查询 注销 设置 找回 激活 解除 更改 恢复 删除 添加 验证 查看 冻结 解冻",
    "money_thing": "贷款 借款 花呗 借呗 微粒贷 信用卡 房贷 车贷 分期 账单 欠款 本金 利息 额度 信用额度 余额 余额宝 微众银行的贷款 网商贷 备用金 网贷 公积金 社保 工资卡 还款日 账单日 保证金 理财 基金 花呗账单 花呗分期 花呗额度 借呗额度 借呗的钱",
    "money_verb": "申请 开通 关闭 取消 还 提前还 查询 使用 提高 提升 恢复 降低 续借 延期还 分期还 一次性还清 重新申请 重新开通 自动还 转出 注销 用",
    "shop_thing": "订单 商品 快递 包裹 退款 退货 换货 发票 优惠券 红包 积分 会员卡 购物车 运费 售后服务 定金 尾款 礼品卡 满减活动 电子发票 物流信息 赠品 收货人 七天无理由退货 运费险",
    "shop_verb": "取消 查询 申请 领取 使用 修改 查看 删除 合并 催 补开 兑换 投诉 退 换 拒收 提交 确认 追踪",
    "phone_thing": "微信 支付宝 QQ 短信 通话记录 照片 电脑 手机 路由器 打印机 耳机 蓝牙 软件 系统 壁纸 输入法 流量 视频 文件 浏览器 应用 闹钟 屏幕 声音 聊天记录 朋友圈 游戏 网络 电视 无线网",
    "phone_verb": "下载 安装 卸载 升级 更新 恢复 备份 删除 重启 连接 设置 关闭 打开 登录 清理 转移 修复 退出 加密 刷 切换",
    "life_do": "做红烧肉 炒鸡蛋 煮米饭 包饺子 蒸鱼 烤蛋糕 炖排骨 腌黄瓜 泡茶 洗羽绒服 去油渍 减肥 瘦肚子 长高 戒烟 早睡 治感冒 退烧 止咳 去痘印 祛斑 美白 护肤 染头发 学英语 练字 学吉他 学游泳 背单词 写作文 写简历 找工作 考驾照 考研究生 考公务员 报名考试 选专业 写论文 办护照 办身份证 办居住证 买火车票 订机票 订酒店 租房子 买房子 装修房子 养花 养猫 训练小狗 种多肉 修自行车 换轮胎 洗车 倒车入库 跟女朋友道歉 追女生 教育孩子 哄孩子睡觉 给孩子起名 开网店 做生意 加盟奶茶店 画眉毛 系领带 叠衣服 折纸飞机 拍好看的照片 剪视频 唱歌 跳舞 打篮球 踢足球 下象棋 跑步 练腹肌",
    "money_do": "转账 提现 充值 付款 收款 还款 借钱 取钱 存钱 消费 扫码支付 缴费 交电费 交话费 退税 开户 销户 提额 转账给别人 给好友转账 用花呗付款 用花呗买东西 把钱转到银行卡 从借呗借钱 查征信 交水费 充话费 挂失银行卡 换一张卡 跨行转账 退回多付的钱 补交手续费",
    "place": "北京 上海 广州 深圳 杭州 成都 重庆 武汉 西安 南京 天津 苏州 长沙 青岛 大连 厦门 昆明 哈尔滨 沈阳 郑州 济南 福州 合肥 南昌 贵阳 海口 三亚 拉萨 桂林 丽江 香港 澳门 台湾 日本 韩国 泰国 美国 英国 法国 德国 俄罗斯 印度 澳大利亚 加拿大 新加坡",
    "goods": "手机 笔记本电脑 空调 冰箱 洗衣机 电视机 相机 手表 手机壳 充电宝 运动鞋 羽绒服 连衣裙 牛仔裤 口红 面膜 洗面奶 洗发水 牙膏 奶粉 纸尿裤 婴儿车 自行车 电动车 摩托车 汽车 二手车 轮胎 沙发 床垫 窗帘 地板 瓷砖 油漆 热水器 净水器 微波炉 电饭煲 吸尘器 键盘 鼠标 耳机 音箱 显卡 内存条 硬盘 吉他 钢琴 书包 行李箱 眼镜 戒指 项链 玫瑰花 蛋糕 茶叶 白酒 红酒 咖啡 大米 苹果 西瓜 草莓 车厘子 螃蟹 小龙虾 猫粮 狗粮",
    "notion": "花呗 借呗 余额宝 公积金 社保 信用卡 征信 贷款 利率 通货膨胀 股票 基金 期货 比特币 区块链 人工智能 机器学习 神经网络 云计算 大数据 物联网 电子商务 供应链 光合作用 牛顿第一定律 相对论 量子力学 黑洞 温室效应 经济危机 市场经济 哲学 唯物主义 逻辑 民法 合同 著作权 专利 商标 糖尿病 高血压 冠心病 胃炎 颈椎病 近视 过敏 失眠 抑郁症 维生素 蛋白质 胆固醇 疫苗 抗生素 勾股定理 三角函数 微积分 概率 质数 元素周期表 文艺复兴 工业革命 辛亥革命 五四运动 唐诗 宋词 京剧 书法 端午节 中秋节 清明节 春节",
    "work": "红楼梦 西游记 三国演义 水浒传 射雕英雄传 三体 活着 围城 老人与海 简爱 哈利波特 泰坦尼克号 阿凡达 霸王别姬 大话西游 甄嬛传 平凡的世界 骆驼祥子 狂人日记 静夜思 小苹果 青花瓷 月亮代表我的心 义勇军进行曲",
    "person": "李白 杜甫 苏轼 鲁迅 老舍 孔子 秦始皇 武则天 康熙 诸葛亮 曹操 岳飞 牛顿 爱因斯坦 爱迪生 居里夫人 贝多芬 莎士比亚 拿破仑 林肯 周杰伦 刘德华 成龙 姚明 马云 李小龙",
    "trouble": "忘记密码 手机丢了 银行卡丢了 身份证过期 逾期还不上 没有收到验证码 收不到短信 钱转错了 转账转错人 被骗了 账号被盗 账号被冻结 付款失败 扣了两次钱 多付了钱 退款没到账 没收到货 收到的货坏了 发错货 少发了一件 衣服尺码不对 快递丢了 快递一直不动 卖家不发货 卖家不退款 还款没成功 还不起钱 额度不够 额度变低了 花呗用不了 借呗不见了 花呗逾期 借呗逾期 信用卡逾期 没有绑定银行卡 银行卡换号了 手机号换了 手机号停用了 手机进水 手机黑屏 手机充不进电 电脑死机 电脑蓝屏 电脑开不了机 软件打不开 网页打不开 连不上无线网 文件误删 忘记带身份证 错过火车 飞机晚点 感冒发烧 拉肚子 牙疼 头疼 失眠 胃疼 过敏 脚崴了 嗓子疼 流鼻血 皮肤痒 宝宝发烧 宝宝不吃饭 孩子不听话 和男朋友吵架 失恋 工作压力大 没有钱 考试没考好 下雨没带伞",
    "who": "男人 女人 男孩 女孩 小孩 老人 年轻人 婴儿 学生 老师 医生 警察 士兵 农民 工人 厨师 司机 歌手 运动员 狗 猫 马 猴子 大象 小鸟 熊猫",
    "number": "一个 两个 三个 一群 几个 一位 许多",
    "act": "弹吉他 弹钢琴 吹长笛 拉小提琴 打鼓 唱歌 跳舞 跑步 走路 游泳 骑自行车 骑马 骑摩托车 开车 切洋葱 切土豆 削苹果 做饭 煎鸡蛋 煮面条 搅拌面糊 倒牛奶 喝水 喝咖啡 吃香蕉 吃面条 吃苹果 看书 看电视 写字 画画 打电话 发短信 玩手机 玩电脑 玩球 踢足球 打篮球 打网球 打乒乓球 放风筝 滑雪 滑冰 滑滑板 爬山 爬树 钓鱼 射箭 射击 睡觉 哭 笑 洗碗 洗手 洗澡 刷牙 化妆 梳头发 穿衣服 扫地 擦窗户 浇花 种树 修车 搬箱子 推车 拉车 抱孩子 喂狗 遛狗 追猫 摇尾巴 排队 开会 演讲 拍照 跳过栏杆 在雪地里玩 躺在沙发上 坐在椅子上 站在桌子旁边 靠在墙上",
    "scene": "公园里 海滩上 街上 厨房里 教室里 舞台上 房间里 草地上 河边 操场上 雪地里 树下 湖里 屋顶上 办公室里 超市里 车站 山上 院子里 马路边",
    "time": "今天 明天 昨天 后天 周末 下周 下个月 今年 去年 明年 早上 中午 下午 晚上 国庆节 春节 暑假 寒假",
    "city_fact": "天气 人口 房价 工资 气温 面积 美食 特产 景点 历史 方言 大学 地铁 医院 海拔 最低工资标准",
    "opinion": "好吃 好看 好用 好玩 便宜 贵 有名 安全 可靠 麻烦 危险 有用 重要 难 简单 值得买 值得去 有意思",
    "deed": "买手机 买车 吃火锅 喝牛奶 看电影 去旅游 去上班 学习 运动 回家 回老家 打游戏 逛街 做饭 睡觉 开会 请假 加班 跑步 结婚 看病 见朋友 去北京 去上海 学开车 学做菜 看书 听音乐 弹琴 爬山",
    "job": "老师 医生 律师 会计 程序员 设计师 护士 司机 厨师 记者 翻译 演员 警察 公务员 销售 客服 导游 飞行员 空姐 工程师",
    "degree": "很 非常 特别 有点 不太 挺 比较",
}  # fmt: skip
_DO = ["{account_verb}{account_thing}", "{money_verb}{money_thing}", "{shop_verb}{shop_thing}", "{phone_verb}{phone_thing}", "{life_do}", "{money_do}", "{money_do}"]  # fmt: skip
FAMILIES: dict[str, tuple[list[str], float]] = {
    # forms that mean the same; weight
    "how": (["怎么{do}", "如何{do}", "怎样{do}", "{do}怎么弄", "{do}怎么操作", "请问怎么{do}", "我想{do}怎么办", "想{do}该怎么做", "{do}的方法", "怎么才能{do}", "{do}的步骤是什么", "教我{do}", "我要怎么{do}", "应该怎么{do}", "{do}要怎么做", "请问如何{do}呢", "怎么{do}啊", "你好，我想{do}，应该怎么操作"], 5),
    "where_do": (["在哪里{do}", "哪里可以{do}", "去哪{do}", "{do}在哪里", "{do}在什么地方", "到哪里去{do}", "哪儿能{do}", "{do}的入口在哪"], 2),
    "cannot": (["为什么不能{do}", "为什么{do}不了", "怎么{do}不了", "{do}不了怎么回事", "我为什么不能{do}", "为啥不能{do}", "{do}失败是什么原因", "不能{do}是怎么回事", "为什么我没办法{do}", "{do}总是失败", "没法{do}是为什么", "无法{do}怎么办"], 4),
    "can": (["可以{do}吗", "能不能{do}", "能{do}吗", "是否可以{do}", "我可以{do}么", "可不可以{do}", "能否{do}", "现在能{do}了吗", "请问可以{do}吗"], 3),
    "not_want": (["我不想{do}了", "不要{do}", "我不需要{do}", "我没有{do}", "没有{do}", "不用{do}了", "我从来没有{do}"], 1.5),
    "did": (["我已经{do}了", "我{do}了", "刚刚{do}了", "我昨天{do}了", "{do}成功了", "已经{do}了"], 1.5),
    "did_but": (["已经{do}了怎么还是不行", "我{do}了为什么没有用", "{do}以后还是不可以", "为什么{do}了还没好", "{do}了怎么没反应"], 1),
    "how_long": (["{do}需要多久", "{do}要多长时间", "多久能{do}", "{do}几天能完成", "{do}大概要几天", "{do}要多少天", "什么时候能{do}", "什么时候可以{do}", "多长时间可以{do}"], 2),
    "fee": (["{do}要手续费吗", "{do}收费吗", "{do}需要多少钱", "{do}多少钱", "{do}要不要钱", "{do}免费吗", "{do}的费用是多少"], 1.5),
    "need": (["{do}需要什么条件", "{do}要什么条件", "{do}有什么要求", "什么条件才能{do}", "{do}的条件是什么", "怎样的人可以{do}", "{do}需要什么材料", "{do}要带什么"], 1.5),
    "want": (["我想{do}", "我要{do}", "帮我{do}", "麻烦帮我{do}", "请帮我{do}", "想要{do}", "给我{do}一下"], 2),
    "must": (["一定要{do}吗", "必须{do}吗", "不{do}可以吗", "不{do}行吗", "不{do}会怎么样", "可以不{do}吗"], 1.5),
    "after": (["{do}之后还能{do2}吗", "{do}后可以{do2}吗", "{do}了还可以{do2}吗", "先{do}再{do2}可以吗"], 1),
    "trouble": (["{trouble}怎么办", "{trouble}了怎么办", "{trouble}该怎么办", "{trouble}怎么处理", "{trouble}应该怎么解决", "如果{trouble}怎么办", "我{trouble}，怎么办", "{trouble}要怎么办才好", "{trouble}有什么办法"], 4),
    "trouble_why": (["为什么{trouble}", "{trouble}是什么原因", "{trouble}是怎么回事", "怎么会{trouble}", "为什么会{trouble}", "{trouble}的原因"], 2),
    "trouble_then": (["{trouble}会怎么样", "{trouble}有什么后果", "{trouble}会有影响吗", "{trouble}影响征信吗", "{trouble}会不会影响信用"], 1),
    "what_is": (["什么是{n}", "{n}是什么", "{n}是什么意思", "{n}是啥", "{n}指的是什么", "解释一下{n}", "介绍一下{n}", "{n}的定义", "{n}是什么东西", "什么叫{n}"], 3),
    "use": (["{n}有什么用", "{n}有什么作用", "{n}的作用是什么", "{n}能干什么", "{n}的用途", "{n}是干什么用的", "{n}有什么好处"], 2),
    "price": (["{goods}多少钱", "{goods}的价格", "{goods}多少钱一个", "买{goods}要多少钱", "{goods}贵不贵", "一个{goods}要花多少钱", "{goods}什么价格"], 2),
    "best": (["哪种{goods}好", "什么牌子的{goods}好", "什么{goods}最好", "推荐一款{goods}", "{goods}哪个牌子好", "有什么好的{goods}推荐", "买什么样的{goods}好", "哪个品牌的{goods}比较好"], 3),
    "buy": (["哪里有卖{goods}", "哪里能买到{goods}", "{goods}在哪里买", "去哪里买{goods}", "哪里买{goods}便宜", "{goods}哪里有卖的"], 1.5),
    "differ": (["{n}和{n2}有什么区别", "{n}和{n2}的区别", "{n}跟{n2}有什么不同", "{n}与{n2}的差别在哪", "{n}和{n2}一样吗", "{n}和{n2}哪个好"], 2),
    "who_is": (["{person}是谁", "{person}是什么人", "介绍一下{person}", "{person}的简介", "谁是{person}"], 1),
    "person_fact": (["{person}是哪里人", "{person}的老家在哪", "{person}是什么地方的人", "{person}出生在哪里"], .7),
    "person_age": (["{person}多大了", "{person}几岁", "{person}的年龄", "{person}今年多大", "{person}哪年出生"], .7),
    "author": (["{work}是谁写的", "{work}的作者是谁", "谁写了{work}", "{work}作者"], .7),
    "work_about": (["{work}讲的是什么", "{work}的主要内容", "{work}主要讲了什么", "{work}讲了一个什么故事"], .7),
    "work_how": (["{work}好看吗", "{work}怎么样", "{work}值得看吗", "大家觉得{work}怎么样"], .7),
    "city": (["{place}的{city_fact}怎么样", "{place}{city_fact}如何", "{place}{city_fact}", "{place}的{city_fact}是什么样的", "说说{place}的{city_fact}"], 2),
    "weather": (["{place}{time}天气怎么样", "{time}{place}会下雨吗", "{place}{time}冷不冷", "{time}{place}的天气", "{place}{time}气温多少度"], 1),
    "go": (["从{place}到{place2}怎么走", "{place}到{place2}怎么去", "{place}去{place2}坐什么车", "从{place}到{place2}要多久", "{place}到{place2}有多远"], 1.5),
    "trip": (["{place}有什么好玩的地方", "{place}哪里好玩", "去{place}旅游要花多少钱", "{place}旅游攻略", "{time}去{place}玩合适吗", "{place}有哪些景点"], 1.5),
    "caption": (["{number}{who}正在{act}", "{number}{who}在{act}", "{number}{who}在{scene}{act}", "{scene}有{number}{who}在{act}", "那{who}正在{scene}{act}"], 4),
    "caption_not": (["没有{who}在{act}", "{number}{who}没有{act}", "{number}{who}不在{act}"], .7),
    "caption_two": (["{number}{who}和{number2}{who2}在{act}", "{number}{who}看着{number2}{who2}{act}", "{number}{who}在{act}，{number2}{who2}在{act2}"], 1.5),
    "day": (["我{time}要去{place}", "{time}我打算去{place}", "{time}我们去{place}吧", "我准备{time}去{place}"], 1),
    "deed": (["我喜欢{deed}", "我{degree}喜欢{deed}", "我爱{deed}"], 1),
    "deed_not": (["我不喜欢{deed}", "我讨厌{deed}", "我不爱{deed}", "我不想{deed}"], 1),
    "deed_time": (["我{time}{deed}", "{time}我要{deed}", "我{time}打算{deed}", "{time}一起{deed}吧"], 1.5),
    "deed_ask": (["{time}你{deed}吗", "你{time}要不要{deed}", "{time}能{deed}吗", "你{time}打算{deed}吗"], 1),
    "say": (["{goods}{degree}{opinion}", "我觉得{goods}{degree}{opinion}", "这个{goods}{degree}{opinion}", "他说{goods}{degree}{opinion}"], 1.5),
    "say_place": (["{place}{degree}{opinion}", "我觉得{place}{degree}{opinion}", "大家都说{place}{degree}{opinion}"], .7),
    "say_ask": (["{goods}{opinion}吗", "这款{goods}真的{opinion}吗", "{goods}到底{opinion}不{opinion}"], 1),
    "job": (["怎么当{job}", "如何成为一名{job}", "想做{job}需要什么条件", "当{job}要学什么", "怎样才能成为{job}"], 1),
    "job_pay": (["{job}一个月工资多少", "{job}收入高吗", "做{job}挣钱吗", "{job}的工资待遇怎么样"], 1),
    "job_person": (["我是一名{job}", "他是{job}", "我的工作是{job}", "我爸爸是{job}"], .7),
    "english": (["{any}用英语怎么说", "{any}的英文是什么", "{any}英语怎么写", "{any}翻译成英文"], 1),
    "synonym": (["{any}的近义词", "{any}的近义词是什么", "和{any}意思相近的词"], .5),
    "antonym": (["{any}的反义词", "{any}的反义词是什么", "和{any}意思相反的词"], .5),
    "meaning": (["{any}是什么意思", "{any}什么意思", "{any}的意思", "{any}的含义是什么", "解释{any}这个词"], 1.5),
    "read": (["{any}怎么读", "{any}的拼音", "{any}读什么", "{any}念什么"], .5),
    "picture": (["{any}的图片", "{any}图片大全", "我想看{any}的照片", "有没有{any}的图"], .5),
    "sentence": (["用{any}造句", "{any}怎么造句", "请用{any}写一句话"], .5),
    "many": (["{place}有多少{job}", "{place}的{job}有多少人", "{place}一共有多少{job}"], .5),
}  # fmt: skip
_LISTS = {name: words.split() for name, words in WORDS.items()}
_SLOT = re.compile(r"\{(\w+?)2?\}")


def write_groups(count: int, *, words: list[str], seed: int) -> Iterator[list[str]]:
    """Yield `count` groups of two to six sentences of one meaning; `words` fill the slot of any word."""
    rng = random.Random(seed)
    names = list(FAMILIES)
    weights = [FAMILIES[name][1] * len(FAMILIES[name][0]) ** 0.5 for name in names]
    for name in rng.choices(names, weights, k=count):
        forms = FAMILIES[name][0]
        filled = {}
        for slot in ("do", "do2"):
            filled[slot] = _fill(rng.choice(_DO), {}, rng)
        for slot in ("n", "n2"):
            filled[slot] = rng.choice(_LISTS[rng.choice(("notion", "notion", "money_thing", "phone_thing", "goods"))])
        filled["any"] = rng.choice(words)
        for slot in (*_LISTS, "place2", "number2", "who2", "act2"):
            filled.setdefault(slot, rng.choice(_LISTS[slot.rstrip("2")]))
        rng.sample(forms, min(len(forms), rng.randint(2, 6)))  # without it the draws would not be those of the model
        chosen = rng.sample(forms, min(len(forms), rng.randint(2, 6)))
        yield [form.format(**filled) for form in chosen]


def _fill(form: str, filled: dict[str, str], rng: random.Random) -> str:
    return _SLOT.sub(lambda slot: filled.get(slot[1]) or rng.choice(_LISTS[slot[1]]), form)
