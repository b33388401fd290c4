# ruff: noqa: E501
"""Programs that try to leave the sandbox: a name, what holds them back, the body of a function that is true on success.

`{canary}` is a file of the host that everyone may read and write, `{folder}` its folder, `{tcp}` and `{udp}` ports where
the host listens, `{unix}` a socket of the host, `{pid}` a process of the host. What holds: `files` and `processes` need
namespaces, `anywhere` has to hold with seccomp and limits alone. The second table holds programs that use something up.
"""

ATTACKS = [
    # The network.
    ("tcp to the host", "anywhere", "socket.create_connection(('127.0.0.1', {tcp}), 1).send(b'out'); return True"),
    ("tcp over IPv6", "anywhere", "socket.create_connection(('::1', {tcp}), 1); return True"),
    ("udp to the host", "anywhere", "socket.socket(2, 2).sendto(b'out', ('127.0.0.1', {udp})); return True"),
    ("unix socket of the host", "anywhere", "s = socket.socket(1); s.connect('{unix}'); s.send(b'out'); return True"),
    ("abstract unix socket", "anywhere", "s = socket.socket(1); s.connect('\\0{unix}'); return True"),
    ("name resolution", "anywhere", "return socket.getaddrinfo('localhost', 80)[0] and socket.socket()"),
    ("raw socket", "anywhere", "return socket.socket(2, 3, 1)"),
    ("packet socket", "anywhere", "return socket.socket(17, 3, 3)"),
    ("netlink socket", "anywhere", "return socket.socket(16, 3, 0)"),
    ("vsock", "anywhere", "return socket.socket(40, 1, 0)"),
    ("listening", "anywhere", "s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); return True"),
    ("socket pair", "anywhere", "return socket.socketpair()"),
    # Files.
    ("reading a host file", "files", "return open('{canary}').read()"),
    ("writing a host file", "files", "return open('{canary}', 'w').write('changed')"),
    ("making a file beside it", "files", "return open('{folder}/left', 'w').write('left')"),
    ("deleting a host file", "files", "os.unlink('{canary}'); return True"),
    ("symbolic link to a host file", "files", "os.symlink('{canary}', '/tmp/l'); return open('/tmp/l').read()"),
    ("hard link to a host file", "files", "os.link('{canary}', '/tmp/h'); return open('/tmp/h').read()"),
    ("parent folders of the root", "files", "return open('../' * 40 + '{canary}'.lstrip('/')).read()"),
    ("the host's passwd", "files", "return open('/etc/passwd').read()"),
    ("the host's shadow", "anywhere", "return open('/etc/shadow').read()"),
    ("home folders", "files", "return os.listdir('/home') or True"),
    ("root's home", "anywhere", "return [n for n in os.listdir('/root') if n != '.pyenv']"),
    ("the repository", "files", "return os.listdir('{repository}')"),
    ("root of process 1", "anywhere", "return open('/proc/1/root{canary}').read()"),
    ("own root through proc", "files", "return open('/proc/self/root{canary}').read()"),
    ("folder of the parent", "files", "return open('/proc/%d/cwd/../..{canary}' % os.getppid()).read()"),
    ("memory of process 1", "anywhere", "return open('/proc/1/mem', 'rb')"),
    ("memory of the parent", "anywhere", "return open('/proc/%d/mem' % os.getppid(), 'rb')"),
    ("arguments of processes", "files", "return open('/proc/%d/cmdline' % os.getppid()).read()"),
    ("environment of the parent", "anywhere", "return open('/proc/%d/environ' % os.getppid(), 'rb').read()"),
    ("descriptors of the parent", "anywhere", "return os.listdir('/proc/%d/fd' % os.getppid())"),
    ("mounting proc", "anywhere", "return call('mount', b'proc', b'/tmp', b'proc', 0, 0) == 0"),
    ("mounting tmpfs", "anywhere", "return call('mount', b'none', b'/tmp', b'tmpfs', 0, 0) == 0"),
    ("remounting writable", "anywhere", "return call('mount', 0, b'/usr', 0, 32 | 4096, 0) == 0"),
    ("unmounting", "anywhere", "return call('umount2', b'/tmp', 2) == 0"),
    ("writing into /usr", "anywhere", "return open('/usr/x', 'w')"),
    ("writing into Python", "anywhere", "return open(os.__file__, 'a')"),
    ("writing into the root", "anywhere", "return open('/x', 'w')"),
    ("writing into /dev", "anywhere", "return open('/dev/x', 'w')"),
    ("kernel settings", "anywhere", "return open('/proc/sys/kernel/core_pattern', 'w')"),
    ("sysfs", "files", "return os.listdir('/sys')"),
    ("the disk", "anywhere", "return open('/dev/vda', 'rb') or open('/dev/sda', 'rb')"),
    ("physical memory", "anywhere", "return open('/dev/mem', 'rb')"),
    (
        "kvm and fuse",
        "files",
        "return os.path.exists('/dev/kvm') or os.path.exists('/dev/fuse') or os.listdir('/dev/shm')",
    ),
    ("the terminal", "anywhere", "return open('/dev/tty', 'w')"),
    ("making a device", "anywhere", "os.mknod('/tmp/d', 0o60666, os.makedev(254, 0)); return True"),
    ("setuid file", "anywhere", "open('/tmp/s', 'w'); os.chown('/tmp/s', 0, 0); return True"),
    ("inherited descriptors", "anywhere", "return [n for n in range(3, 64) if alive(n) and not is_pipe(n)]"),
    ("file handles", "anywhere", "return call('open_by_handle_at', -100, ctypes.create_string_buffer(64), 0) >= 0"),
    # Processes and privileges.
    ("starting a program", "anywhere", "return os.spawnv(os.P_WAIT, '/usr/bin/env', ['env']) == 0"),
    ("forking", "anywhere", "pid = os.fork(); return pid or os._exit(0)"),
    ("vfork and exec", "anywhere", "import subprocess; return subprocess.run(['/usr/bin/env']).returncode == 0"),
    ("replacing itself", "anywhere", "os.execv('/usr/bin/env', ['env'])"),
    ("tracing the parent", "anywhere", "return call('ptrace', 16, os.getppid(), 0, 0) == 0"),
    ("reading the parent's memory", "anywhere", "return vm_readv(os.getppid())"),
    ("signal to a host process", "anywhere", "os.kill({pid}, 9); return True"),
    ("becoming root", "anywhere", "os.setuid(0); return True"),
    ("becoming another group", "anywhere", "os.setgroups([0]); return True"),
    ("being root already", "anywhere", "return 'x' if os.getuid() == 0 and {root} else None"),
    ("capabilities", "anywhere", "return capabilities()"),
    ("user namespace", "anywhere", "return call('unshare', 0x10000000) == 0"),
    ("mount namespace", "anywhere", "return call('unshare', 0x20000) == 0"),
    ("clone with a user namespace", "anywhere", "return call('syscall', 56, 0x10000011, 0, 0, 0, 0) >= 0"),
    ("entering a namespace", "anywhere", "return call('setns', 0, 0) == 0"),
    ("chroot", "anywhere", "os.chroot('/tmp'); return True"),
    ("pivot_root", "anywhere", "return call('syscall', 155, b'/tmp', b'/tmp') == 0"),
    ("gaining privileges on exec", "anywhere", "return call('prctl', 39, 0, 0, 0, 0) == 0"),
    ("outliving the parent", "anywhere", "return call('prctl', 1, 0, 0, 0, 0) == 0"),
    ("leaving the session", "anywhere", "os.setsid(); return True"),
    ("kexec", "anywhere", "return call('syscall', 246, 0, 0, 0, 0) == 0"),
    ("reboot", "anywhere", "return call('reboot', 0) == 0"),
    ("loading a module", "anywhere", "return call('syscall', 175, b'', 0, b'') == 0"),
    ("keyring", "anywhere", "return call('syscall', 250, 0, -3, 1) >= 0"),
    ("bpf", "anywhere", "return call('syscall', 321, 0, ctypes.create_string_buffer(128), 128) >= 0"),
    ("perf events", "anywhere", "return call('syscall', 298, ctypes.create_string_buffer(128), 0, -1, -1, 0) >= 0"),
    ("userfaultfd", "anywhere", "return call('syscall', 323, 1) >= 0"),
    ("io_uring", "anywhere", "return call('syscall', 425, 8, ctypes.create_string_buffer(256)) >= 0"),
    ("fanotify", "anywhere", "return call('fanotify_init', 0, 0) >= 0"),
    ("another personality", "anywhere", "return call('personality', 8) >= 0"),
    ("32-bit system calls", "anywhere", "return old_call(20) > 0"),
    (
        "signal through a descriptor",
        "anywhere",
        "import fcntl; return fcntl.fcntl(1, 10, 9) == fcntl.fcntl(1, 8, {pid}) == 0",
    ),
    # The machine.
    ("the environment", "anywhere", "return [n for n in os.environ if n not in ('PWD', 'LC_CTYPE', 'PATH')]"),
    ("setting the clock", "anywhere", "import time; time.clock_settime(0, 0.0); return True"),
    ("setting the host's name", "anywhere", "socket.sethostname('x'); return True"),
    ("raising priority", "anywhere", "os.nice(-5); return True"),
    ("raising limits", "anywhere", "import resource; resource.setrlimit(7, (9999, 9999)); return True"),
    ("limits of the parent", "anywhere", "import resource; return resource.prlimit(os.getppid(), 7, (4, 4))"),
    ("real-time scheduling", "anywhere", "os.sched_setscheduler(0, 1, os.sched_param(1)); return True"),
    ("System V shared memory", "anywhere", "return call('shmget', 77, 1 << 30, 0o1666) >= 0"),
    (
        "POSIX shared memory",
        "anywhere",
        "from multiprocessing import shared_memory as s; return s.SharedMemory('x', True, 99)",
    ),
    ("memory outside the limit", "anywhere", "return os.memfd_create('x')"),
    ("POSIX message queue", "anywhere", "return call('mq_open', b'/x', 0o102, 0o666, 0) >= 0"),
]

PRELUDE = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    return getattr(libc, name)(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
def alive(fd):
    try:
        return os.fstat(fd)
    except OSError:
        return None
def is_pipe(fd):
    return os.fstat(fd).st_mode & 0o170000 == 0o010000
def capabilities():
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert call('capget', header, data) == 0
    return any(data)
def vm_readv(pid):
    text = ctypes.create_string_buffer(8)
    span = (ctypes.c_uint64 * 2)(ctypes.addressof(text), 8)
    return call('process_vm_readv', pid, span, 1, span, 1, 0) > 0
def old_call(number):
    import mmap
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(b'\\xb8' + number.to_bytes(4, 'little') + b'\\xcd\\x80\\xc3')  # mov eax, number; int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""

NEED_SECCOMP = {
    "netlink socket", "vsock", "listening", "socket pair", "udp to the host", "user namespace", "outliving the parent",
    "leaving the session", "keyring", "userfaultfd", "io_uring", "another personality", "32-bit system calls",
    "limits of the parent", "System V shared memory", "memory outside the limit", "POSIX message queue", "starting a program",
    "forking", "vfork and exec", "replacing itself", "signal through a descriptor",
}  # fmt: skip
"""What namespaces alone let a program do; none of it reaches the host."""

EXHAUSTING = [
    ("fork bomb", "import os\nwhile True:\n    os.fork()"),
    ("patient fork bomb", "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"),
    (
        "double-forked daemon",
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(60)",
    ),
    ("threads", "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()"),
    ("memory", "x = []\nwhile True:\n    x.append(bytearray(1 << 24))"),
    ("memory at once", "x = bytearray(1 << 40)"),
    ("a huge number", "x = 9 ** 9 ** 9 ** 9"),
    ("a full disk", "f = open('/tmp/x', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))"),
    ("many full files", "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))"),
    ("many files", "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'wb').close()"),
    ("open files", "x = []\nwhile True:\n    x.append(open('/dev/null'))"),
    ("spinning", "while True:\n    pass"),
    ("sleeping", "import time\ntime.sleep(60)"),
    (
        "deaf to signals",
        "import signal, time\nfor n in range(1, 65):\n    try:\n        signal.signal(n, 1)\n    except (OSError, ValueError):\n        pass\ntime.sleep(60)",
    ),
    ("flood of output", "while True:\n    print('x' * 1000)"),
    ("flood of errors", "import sys\nwhile True:\n    sys.stderr.write('x' * 1000)"),
    ("one endless line", "import os\nwhile True:\n    os.write(1, bytes(1 << 16))"),
    ("recursion", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()"),
    ("crash with a core", "import ctypes\nctypes.string_at(0)"),
    ("signals to everyone", "import os\nos.kill(-1, 9)"),
    ("signals to its group", "import os\nos.killpg(0, 9)"),
    ("signal to the parent", "import os\nos.kill(os.getppid(), 9)"),
    ("waiting for input", "input()"),
    ("slow compilation", "x = " + "+".join(["1"] * 20000)),
    ("deep nesting", "x = " + "(" * 5000 + ")" * 5000),
    ("catastrophic pattern", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"),
]

REQUEST = """
import json, sys
def f(make):
    frame = sys._getframe(1)
    while 'self' not in frame.f_locals:
        frame = frame.f_back
    peer, inside = frame.f_locals['self'], sys.modules['__main__']
    def read():
        return json.loads(inside._read(peer.source))
    def call(*function):
        peer._send(['call', ['tuple', [list(function), ['tuple', []], ['dict', []]]]])
        return read()[1][1]
    peer.kept[1] = lambda other: True
    made = ['tuple', ['X', ['tuple', []], ['dict', [['__eq__', ['mine', 1]]]]]]
    ours = object.__getattribute__(make, 'number')
"""
"""The beginning of a program that writes to the tests' process itself: `made` is what `type` makes a class of."""

FORGERIES = [
    ("exit", "import sys\nsys.exit(0)"),
    ("hard exit", "import os\nos._exit(0)"),
    ("exit in the function", "def f(x):\n    import os\n    os._exit(0)"),
    ("exit handler", "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit"),
    ("printing", 'print(\'passed\')\nprint(\'{"compiled": true, "passed": 1, "reason": ""}\')'),
    (
        "an object equal to all",
        "class A:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\nf = lambda x: A()",
    ),
    (
        "a number equal to all",
        "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\nf = lambda x: A(5)",
    ),
    ("a text equal to all", "class A(str):\n    __eq__ = lambda s, o: True\nf = lambda x: A('5')"),
    ("a list equal to all", "class A(list):\n    __eq__ = lambda s, o: True\nf = lambda x: A([5])"),
    (
        "a class that claims to be int",
        "class A:\n    __class__ = int\n    __eq__ = lambda s, o: True\nf = lambda x: A()",
    ),
    (
        "a metaclass equal to all",
        "class M(type):\n    __eq__ = lambda s, o: True\nclass f(metaclass=M):\n    def __new__(c, x): return c",
    ),
    ("builtins replaced", "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\nf = lambda x: 0"),
    ("no AssertionError", "import builtins\nbuiltins.AssertionError = AssertionError = None\nf = lambda x: 0"),
    ("builtins handed over", "__builtins__ = {'AssertionError': None}\nf = lambda x: 0"),
    ("optimised away", "import sys\nsys.flags = type('F', (), {'optimize': 2})\nf = lambda x: 0"),
    (
        "the harness's frames",
        "import sys\nframe = sys._getframe()\nwhile frame:\n    for v in frame.f_locals.copy().values():\n        if hasattr(v, 'target'):\n            [v._send(['value', True]) for _ in range(9)]\n    frame = frame.f_back\nf = lambda x: True",
    ),
    (
        "every descriptor",
        "import json, os\nline = json.dumps({'compiled': True, 'passed': 1, 'reason': ''}).encode() + b'\\n'\nfor n in range(4096):\n    try:\n        os.write(n, line)\n    except OSError:\n        pass\nf = lambda x: 0",
    ),
    (
        "descriptors of the parent",
        'import os\nfor n in range(64):\n    try:\n        os.write(os.open(f\'/proc/{os.getppid()}/fd/{n}\', 1), b\'{"compiled": true, "passed": 1, "reason": ""}\\n\')\n    except OSError:\n        pass\nf = lambda x: 0',
    ),
    (
        "searching memory for the answer",
        "import gc, re\nfound = [o for o in gc.get_objects() if isinstance(o, str) and 'secret' in o]\ndef f(x):\n    return next((int(n) for t in found for n in re.findall('secret-(\\\\d+)', t)), 0)",
    ),
    (
        "reading the tests from stdin",
        "import os\ndef f(x):\n    return int(os.read(0, 65536).split(b'secret-')[1][:9])",
    ),
    (
        "a thread that answers",
        "import os, threading\ndef answer():\n    while True:\n        for n in range(3, 9):\n            try:\n                os.write(n, b'\\0' * 7 + b'\\x0f[\"value\", true]')\n            except OSError:\n                pass\nthreading.Thread(target=answer, daemon=True).start()\nf = lambda x: 0",
    ),
    ("tracing", "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\nf = lambda x: 0"),
    ("killing the tests", "import os\ndef f(x):\n    os.kill(os.getppid(), 9)"),
    ("an error of the tests' choice", "class AssertionError(BaseException): pass\ndef f(x): raise AssertionError"),
    (
        "a reply full of junk",
        "import os\ndef f(x):\n    for n in range(3, 9):\n        try:\n            os.write(n, b'\\xff' * 64)\n        except OSError:\n            pass",
    ),
    ("a class made in the tests", "def f(make):\n    return make(type, ('E', (int,), {'__eq__': lambda s, o: True}))"),
    (
        "a class made by the tests' function, and an object of it",
        "def f(make):\n    E = make(type, ('E', (), {'__eq__': lambda other: True}))\n    return make(E, ())",
    ),
    (
        "a class made of what an iterator gives",
        REQUEST
        + """
    peer._send(['call', ['mine', [['yours']]]])
    while True:
        asked = read()
        if asked[0] == 'iter':
            peer._send(['value', ['list', [['class', 'type'], made, ['dict', []]]]])
        elif asked[0] == 'len':
            peer._send(['value', 3])
        else:
            break
    return inside.Remote(peer, call('yours', asked[1][1]))
""",
    ),
    (
        "a class by its name",
        f"{REQUEST}\n    peer._send(['call', ['tuple', [['class', 'type'], made, ['dict', []]]]])"
        "\n    return inside.Remote(peer, call('yours', read()[1][1]))",
    ),
    (
        "a class by a list that begins like a number of the tests'",
        f"{REQUEST}"
        "\n    peer._send(['call', ['list', [['yours', ours], ['tuple', [['class', 'type'], made]], ['dict', []]]]])"
        "\n    return inside.Remote(peer, call('yours', read()[1][1]))",
    ),
    (
        "a class from a module",
        f"{REQUEST}\n    peer._send(['getattr', ['tuple', [['module', 'builtins'], 'type']]])"
        "\n    return inside.Remote(peer, call('yours', read()[1][1]))",
    ),
    (
        "an object of the tests' asked for equality",
        f"{REQUEST}"
        "\n    peer._send(['setattr', ['tuple', [['yours', ours], '__eq__', ['mine', 1]]]])\n    read()\n    return make",
    ),
    (
        "imports replaced",
        "import sys, types\nsys.modules['math'] = types.SimpleNamespace(isclose=lambda *a, **k: True)\nimport math\nf = lambda x: 0",
    ),
    ("not a number", "f = lambda x: float('nan')"),
    ("nothing at all", ""),
]
"""Programs that claim to have passed `assert f(7) == <a secret number>`."""
