"""Every word of the pages, in English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]

WORDS: Mapping[str, tuple[str, str]] = {
    # The frame
    "rank": ("Rank", "排序"),
    "history": ("My rankings", "我的记录"),
    "help": ("Help", "帮助"),
    "account": ("Account", "账号"),
    "progress": ("Progress", "进度"),
    "people": ("People", "人员"),
    "tasks": ("Tasks", "任务"),
    "agreement": ("Agreement", "一致性"),
    "menu": ("Pages", "页面"),
    "skip-to-content": ("To the content", "跳到正文"),
    "log-in": ("Log in", "登录"),
    "log-out": ("Log out", "退出"),
    "needs-javascript": ("Ranking needs JavaScript; allow it for this page.", "排序需要 JavaScript，请允许本页使用。"),
    # Coming in
    "name": ("Name", "姓名"),
    "password": ("Password", "密码"),
    "login-hint": (
        "No password? Open the invitation link you were given.",
        "没有密码？请打开你收到的邀请链接。",
    ),
    "wrong-login": ("Name and password do not go together.", "姓名或密码不正确。"),
    "too-many": ("Too many attempts; wait ten minutes and try again.", "尝试次数过多，请十分钟后再试。"),
    "invited": ("You are invited", "欢迎加入"),
    "invited-as": ("to rank answers for {project}.", "邀请你为“{project}”的回答排序。"),
    "invited-as-admin": ("to run {project}.", "邀请你管理“{project}”。"),
    "your-name": ("Your name", "你的姓名"),
    "your-name-hint": (
        "It stands beside what you rank; only those who run the project see it.",
        "姓名会与你的排序一起保存，只有项目管理员可见。",
    ),
    "new-password": ("Choose a password", "设置密码"),
    "optional-password": (
        "At least {fewest} characters. Without one, only an invitation link lets you in again.",
        "至少 {fewest} 个字符。不设密码的话，以后只能通过邀请链接进入。",
    ),
    "required-password": ("At least {fewest} characters.", "至少 {fewest} 个字符。"),
    "come-in": ("Come in", "进入"),
    "no-invitation": (
        "This invitation is wrong, used or too old. Ask for a new one.",
        "邀请链接无效、已被使用或已过期，请索取新的链接。",
    ),
    "password-length": (
        "A password has {fewest} to {most} characters.",
        "密码长度应为 {fewest} 到 {most} 个字符。",
    ),
    "old-password": ("Present password", "当前密码"),
    "wrong-password": ("The present password is not right.", "当前密码不正确。"),
    "set-password": ("Set password", "保存密码"),
    "password-kept": (
        "The new password is kept; you are logged out everywhere else.",
        "新密码已保存，其他设备上的登录已全部失效。",
    ),
    # Ranking
    "prompt": ("Prompt", "提问"),
    "conversation": ("Conversation", "对话"),
    "role-system": ("System", "系统"),
    "role-user": ("User", "用户"),
    "role-assistant": ("Assistant", "助手"),
    "role-tool": ("Tool", "工具"),
    "answers-best-first": ("Answers, best first", "回答（从好到差）"),
    "answer": ("Answer {letter}", "回答 {letter}"),
    "place": ("place {place} of {count}", "第 {place} 名，共 {count} 个"),
    "shared-place": ("place {place} of {count}, tied", "并列第 {place} 名，共 {count} 个"),
    "move-up": ("Move answer {letter} up", "上移回答 {letter}"),
    "move-down": ("Move answer {letter} down", "下移回答 {letter}"),
    "tie": ("As good as the one above", "与上一个并列"),
    "drag": ("Drag to its place", "拖动排序"),
    "show-all": ("Show all of it", "展开全文"),
    "show-less": ("Show less", "收起"),
    "unfinished": ("This answer was cut off at its length limit.", "此回答因达到长度上限而中断。"),
    "long-answer": (
        "This text has {length} characters; the first {shown} are shown.",
        "全文共 {length} 个字符，此处显示前 {shown} 个。",
    ),
    "whole-text": ("Open all of it", "打开全文"),
    "note": ("Note (optional)", "备注（可不填）"),
    "send": ("Send ranking", "提交排序"),
    "all-bad": ("All bad", "全都不好"),
    "skip": ("Skip …", "跳过……"),
    "skip-why": ("Why skip it?", "跳过的原因"),
    "skip-send": ("Skip this task", "跳过此题"),
    "undo": ("Undo the last one", "撤销上一题"),
    "reason-unclear": ("The prompt is unclear", "提问不清楚"),
    "reason-expertise": ("I cannot judge this", "我无法判断"),
    "reason-uncomfortable": ("I do not want to read this", "不愿阅读此内容"),
    "reason-broken": ("It is shown wrongly", "显示有问题"),
    "reason-other": ("Something else (say it in the note)", "其他（请写在备注中）"),
    "rubric": ("What to judge by", "评判标准"),
    "today-of": ("{today} of {goal} today", "今日 {today} / {goal}"),
    "today-count": ("{today} today", "今日 {today}"),
    "done-left": ("{done} in all, {left} left", "累计 {done}，剩余 {left}"),
    "goal-reached": ("Today's goal is reached. Thank you!", "今日目标已达成，谢谢！"),
    "keys": (
        "Keys: 1–{count} moves the focused answer to that place · = ties it with the one above · ↑ ↓ to the next "
        "answer, with Shift moves it · Enter sends · B all bad · S skip · U undo",
        "按键：1–{count} 把选中的回答移到该名次 · = 与上一个并列 · ↑ ↓ 选择回答，按住 Shift 则移动 · "
        "Enter 提交 · B 全都不好 · S 跳过 · U 撤销",
    ),
    "nothing-left": ("Nothing left to rank", "没有待排序的任务"),
    "nothing-left-hint": (
        "You have ranked all there is for you. New tasks appear here by themselves.",
        "你已完成目前所有任务。有新任务时会自动出现在这里。",
    ),
    "being-drawn": (
        "New answers are being written; the next task comes by itself.",
        "正在生成新的回答，稍后会自动出现。",
    ),
    "look-again": ("Look again", "刷新"),
    # What happened
    "saved": ("Saved.", "已保存。"),
    "saved-skip": ("Skipped.", "已跳过。"),
    "saved-bad": ("Saved: all bad.", "已保存：全都不好。"),
    "next": ("The next task is here.", "下一题已就绪。"),
    "undone": ("Taken back; rank it again.", "已撤销，请重新排序。"),
    "nothing-to-undo": ("There is nothing to undo.", "没有可撤销的内容。"),
    "judged-before": (
        "You had judged this task already; the earlier judgement counts.",
        "此题你之前已评判过，以之前的结果为准。",
    ),
    "not-yours": ("This task is not yours any more; here is the next one.", "此题已不属于你，下面是另一题。"),
    "untouched": (
        "You have not moved anything. Send once more if this is your order.",
        "你还没有调整过顺序。如果就是这个顺序，请再提交一次。",
    ),
    "now-at": ("Answer {letter}: {place}", "回答 {letter}：{place}"),
    "first-ties-with-none": (
        "The first answer has none above it to tie with.",
        "排在第一的回答上方没有可并列的回答。",
    ),
    "why-first": ("Choose why you skip it.", "请选择跳过的原因。"),
    "sending": ("Sending …", "正在提交……"),
    "offline": (
        "No connection. Your ranking is kept here and sent again in {seconds} s; leave this page open.",
        "网络已断开。排序保留在本页，{seconds} 秒后重新提交，请勿关闭页面。",
    ),
    "logged-out": (
        "You are logged out. Log in in another tab; this ranking is kept here and then sent.",
        "登录已失效。请在新标签页登录，本页的排序会保留并随后提交。",
    ),
    "someone-else": (
        "Someone else is logged in here now. Log in as {name} to send this.",
        "当前登录的是其他人。请以“{name}”的身份登录后提交。",
    ),
    "refused": ("It could not be saved: {said}", "无法保存：{said}"),
    # History, help, account
    "no-history": ("You have not ranked anything yet.", "你还没有排序记录。"),
    "when": ("When", "时间"),
    "judgement": ("Judgement", "结果"),
    "seconds": ("Seconds", "用时（秒）"),
    "ranked": ("ranked", "已排序"),
    "all_bad": ("all bad", "全都不好"),
    "skipped": ("skipped", "已跳过"),
    "best": ("Best: {best}", "最好：{best}"),
    "latest-shown": ("The latest {count} are shown.", "显示最近 {count} 条。"),
    "help-order": (
        "Put the answers in order, the best at the top. Drag a card by its handle, use its arrows, or the keys below. "
        "Mark answers that are equally good as ties rather than guessing.",
        "把回答从好到差排列，最好的放在最上面。可以拖动卡片左侧的把手、点击箭头，或使用下面的按键。同样好的回答请标为并列，不要猜。",
    ),
    "help-bad": (
        "If no answer is acceptable, say “All bad”: no order is kept then. If you cannot judge, skip the task and "
        "say why; someone else gets it.",
        "如果没有一个回答可以接受，请选“全都不好”，此时不记录顺序。如果无法判断，请跳过并说明原因，任务会交给别人。",
    ),
    "help-blind": (
        "You do not see who wrote an answer, and everybody sees them in another order.",
        "你看不到回答的来源，每个人看到的顺序也不相同。",
    ),
    "help-time": (
        "The time a task takes is kept, counted only while its page is visible. A task you have opened is kept for "
        "you for {minutes} minutes; after that someone else may get it, but what you send still counts.",
        "系统会记录每题用时，只计算页面可见的时间。打开的任务会为你保留 {minutes} 分钟，"
        "之后可能分给别人，但你提交的结果仍然有效。",
    ),
    "help-undo": (
        "“Undo” takes back your last judgement and shows its task again; press it again for the one before.",
        "“撤销”会收回你最近一次的结果并重新显示该题，再按一次则继续往前。",
    ),
    "help-lost": (
        "If the connection or the server goes away, leave the page open: it sends your ranking again, and it counts "
        "once.",
        "如果网络或服务器中断，请保持页面打开：它会自动重新提交，并且只计一次。",
    ),
    "help-keys": ("Keys", "按键"),
    "key-number": ("move the focused answer to that place", "把选中的回答移到该名次"),
    "key-tie": ("tie it with the one above, or untie it", "与上一个并列，或取消并列"),
    "key-arrows": ("to the answer above or below", "选择上一个或下一个回答"),
    "key-shift": ("move the focused answer up or down", "上移或下移选中的回答"),
    "key-enter": ("send", "提交"),
    "key-b": ("all bad", "全都不好"),
    "key-s": ("skip", "跳过"),
    "key-u": ("undo", "撤销"),
    # Running the project
    "judged-tasks": ("Tasks with all their judgements", "已完成的任务"),
    "judgements": ("Judgements", "结果数"),
    "judgements-today": ("Today", "今日"),
    "median-seconds": ("Median time", "用时中位数"),
    "last": ("Last", "最近一次"),
    "no-people": ("Nobody is here yet.", "还没有人员。"),
    "role": ("Role", "角色"),
    "annotator": ("annotator", "标注员"),
    "admin": ("admin", "管理员"),
    "comes-by": ("Comes by", "登录方式"),
    "by-password": ("password", "密码"),
    "by-link": ("link alone", "仅邀请链接"),
    "state": ("State", "状态"),
    "active": ("active", "正常"),
    "inactive": ("shut out", "已停用"),
    "shut-out": ("Shut out", "停用"),
    "let-in": ("Let in", "恢复"),
    "invite": ("Invite", "邀请"),
    "invite-name": ("Name (optional)", "姓名（可不填）"),
    "invite-hint": (
        "With a name, the link lets that person in until it expires. Without one, it works once, for whoever opens "
        "it first.",
        "填写姓名后，链接在有效期内可反复用于此人登录；不填姓名则只能使用一次，先到先得。",
    ),
    "invite-days": ("Days it is good for", "有效天数"),
    "make-link": ("Make a link", "生成链接"),
    "link-made": ("Send this link; it is shown only now:", "请发送此链接，它只显示这一次："),
    "task": ("Task", "任务"),
    "kind": ("From", "来源"),
    "from-file": ("file", "文件"),
    "from-random": ("random", "随机"),
    "from-active": ("active", "主动选择"),
    "gold": ("gold", "质检题"),
    "answers": ("Answers", "回答数"),
    "judged-of": ("Judged", "已评判"),
    "writers": ("Written by", "回答来源"),
    "page-of": ("Page {page} of {pages}", "第 {page} 页，共 {pages} 页"),
    "earlier": ("Back", "上一页"),
    "later": ("On", "下一页"),
    "no-tasks": ("There are no tasks yet.", "还没有任务。"),
    "drawing-off": ("Sampling stopped: {said}", "采样已停止：{said}"),
    "not-you": ("You cannot shut yourself out.", "不能停用自己。"),
    "no-page": ("There is no such page.", "没有这个页面。"),
    "failed": (
        "Something went wrong here; the server's log says what. Nothing you sent before is lost.",
        "出错了，详情见服务器日志。之前提交的内容没有丢失。",
    ),
    "bad-form": ("This form is incomplete; open the page again.", "表单不完整，请重新打开页面。"),
    "away": ("The database does not answer; try again in a moment.", "数据库暂时没有响应，请稍后再试。"),
}
IN_SCRIPTS = (
    "place",
    "shared-place",
    "now-at",
    "first-ties-with-none",
    "untouched",
    "why-first",
    "sending",
    "offline",
    "logged-out",
    "someone-else",
    "refused",
    "show-all",
    "show-less",
)
"""The words that ranking.js says."""


def word(language: Language, key: str, **values: object) -> str:
    """The text of a key in a language, with values put in."""
    text = WORDS[key][language == "zh"]
    return text.format(**values) if values else text


def language_of(accepted: str) -> Language:
    """The language that a browser's Accept-Language header prefers."""
    for part in accepted.lower().split(","):
        name = part.partition(";")[0].strip()
        if name.startswith(("zh", "en")):
            return "zh" if name.startswith("zh") else "en"
    return "en"
