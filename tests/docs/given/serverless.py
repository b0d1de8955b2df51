import azure.functions as func
import functions_framework

from windback import Windback

app = func.FunctionApp()
client = Windback()
