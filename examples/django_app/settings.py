"""The settings: those that a project has anyway, and the lines for windback."""

SECRET_KEY = "for this example alone"  # noqa: S105
DEBUG = True
ROOT_URLCONF = "urls"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]

INSTALLED_APPS += ["windback.django"]
MIDDLEWARE += ["windback.django.WindbackMiddleware"]
# With Django's authentication this line is not needed: the customer is the user who is logged in.
WINDBACK = {"CUSTOMER": "urls.find_customer"}
