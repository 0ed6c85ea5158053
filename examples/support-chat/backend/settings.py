import pathlib

HERE = pathlib.Path(__file__).parent

ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
TIME_ZONE = "UTC"
ROOT_URLCONF = "views"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [HERE]}]
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
